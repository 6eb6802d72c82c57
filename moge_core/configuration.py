"""Configuration files: JSON with comments, read into strict models whose errors name the file and the key."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from moge_core.errors import ConfigError

MAX_CONFIG_BYTES = 16 * 1024 * 1024

# A string (kept) or a comment (dropped); strings come first so that "http://x" and "#1" inside them survive.
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|(?:#|//)[^\n]*')


class StrictModel(BaseModel):
    """Base of every configuration section: unknown keys are errors, values are frozen after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; comments from `#` or `//` to the end of the line are allowed.

    Raises:
        ConfigError: the file is missing, too large, not JSON, not an object, or names a key twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(path, f"must be a configuration file of at most {MAX_CONFIG_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(path, "must exist", found="no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "must be a readable UTF-8 text file", found=error) from error
    return parse_json(text, where=path)


def parse_json(text: str, where: object) -> dict[str, Any]:
    """Parse JSON text with comments into a dictionary; `where` names the source in errors.

    Raises:
        ConfigError: the text is not a JSON object, or it names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise ConfigError(where, "must name each key once", found=f"{', '.join(twice)} more than once")
        return found

    def refuse_constant(constant: str) -> float:
        raise ConfigError(where, "must hold finite numbers only", found=constant)

    try:
        value = json.loads(strip_comments(text), object_pairs_hook=unique, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}", f"must be JSON ({error.msg.lower()})") from error
    except RecursionError:
        raise ConfigError(where, "must be JSON of reasonable depth") from None
    if not isinstance(value, dict):
        raise ConfigError(where, "must hold a JSON object", found=type(value).__name__)
    return value


def strip_comments(text: str) -> str:
    """Blank out `#` and `//` comments outside strings, keeping line numbers and columns."""
    return _STRING_OR_COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " " * len(match[0]), text)


def parse_as(model: type[ModelT], values: Mapping[str, Any], where: object) -> ModelT:
    """Validate `values` as `model`; the first problem becomes one error that names the key in `where`.

    Raises:
        ConfigError: a key is unknown (with the nearest known one), missing or of the wrong kind.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # An unknown key is usually the cause of a missing one beside it, so it is told first.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        raise _as_config_error(details[0], len(details), model, where) from None


def deep_merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it: objects merge key by key, everything else is replaced.

    An object that names another `type` (of optimiser, of scheduler) is replaced whole: its keys belong to that type.
    """
    if "type" in overrides and overrides["type"] != base.get("type"):
        return dict(overrides)
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted names of the keys in which two JSON values differ, sorted."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names: list[str] = []
        for key in sorted({*before, *after}):
            if key not in before or key not in after:
                names.append(prefix + key)
            else:
                names += changed_keys(before[key], after[key], f"{prefix}{key}.")
        return names
    same = before == after or (
        isinstance(before, float) and isinstance(after, float) and math.isnan(before) and math.isnan(after)
    )
    return [] if same else [prefix.rstrip(".")]


def _as_config_error(detail: ErrorDetails, count: int, model: type[BaseModel], where: object) -> ConfigError:
    # Union branches put the class name into the location; a person looks for the key.
    key = ".".join(str(part) for part in detail["loc"] if not _is_branch_name(part))
    more = f" ({count - 1} more problems after this one)" if count > 1 else ""
    at = f"{where}: {key}" if key else str(where)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        name = str(detail["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
        return ConfigError(at, "is not a known key" + more, fix=fix)
    if detail["type"] == "missing":
        return ConfigError(at, "is required" + more)
    cause = detail.get("ctx", {}).get("error")
    rule = str(cause) if cause is not None else detail["msg"][0].lower() + detail["msg"][1:]
    return ConfigError(at, rule + more, found=_short(detail["input"]))


def _is_branch_name(part: int | str) -> bool:
    return isinstance(part, str) and ((part[:1].isupper() and part.endswith(("Config", "V1", "V2"))) or "[" in part)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location` below `model`."""
    current: Any = model
    for part in location:
        if isinstance(part, int) or _is_branch_name(part):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        inner = _section_in(field.annotation) if field is not None else None
        current = inner if inner is not None else current
    return sorted(getattr(current, "model_fields", {}))


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The configuration model inside `list[Model]`, `dict[str, Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)


def _short(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
