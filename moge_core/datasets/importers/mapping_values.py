"""Numbers in the mappings of JSON and YAML files, whose names and forms differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# More numbers than any camera has.
_MOST_NUMBERS = 64


def plain_keys(value: Any) -> dict[str, Any]:
    """A mapping by its plain names; empty for anything else."""
    return {plain_name(str(key)): inner for key, inner in value.items()} if isinstance(value, Mapping) else {}


def plain_name(key: str) -> str:
    """A name without case and punctuation, by which names are compared."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


def as_number(value: Any) -> float | None:
    """A number, also one written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def as_floats(value: Any) -> list[float] | None:
    """Numbers of a number, of nested lists, of a line of text, or of OpenCV's {"rows", "cols", "data"}."""
    if isinstance(value, Mapping):
        data = plain_keys(value).get("data")
        return None if data is None or isinstance(data, Mapping) else as_floats(data)
    if isinstance(value, str):
        value = value.replace(",", " ").strip("[] ").split() or None
    if not isinstance(value, list | tuple):
        number = as_number(value)
        return None if number is None else [number]
    result: list[float] = []
    for item in value:
        numbers = [number] if (number := as_number(item)) is not None else as_floats(item) if _is_row(item) else None
        if numbers is None or len(result) > _MOST_NUMBERS:
            return None
        result += numbers
    return result


def _is_row(item: Any) -> bool:
    return isinstance(item, list | tuple)


def as_pair(value: Any) -> tuple[float, float] | None:
    """Two numbers in a list."""
    numbers = as_floats(value)
    return (numbers[0], numbers[1]) if numbers is not None and len(numbers) == 2 else None
