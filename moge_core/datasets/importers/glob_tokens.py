"""What the wildcards of a pattern matched in a path: the part by which a user tells frames apart."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath

_WILDCARD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]")


def matched_by_wildcards(pattern: str, path: PurePosixPath) -> PurePosixPath | None:
    """What `*`, `?`, `[...]` and `**` matched before the suffix, as a path of its own.

    A number of which the pattern names a part is taken whole: `*1.png` tells 0001 by 0001.

    Args:
        pattern: as `Path.glob` takes it.
        path: a path that it found.

    Returns:
        None where the pattern has no wildcard before the suffix, or does not match.
    """
    text = str(path)
    match = _regex(pattern).fullmatch(text)
    if match is None:
        return None
    end_of_stem = len(text) - len(path.suffix)
    spans: list[list[int]] = []
    for group in range(1, len(match.groups()) + 1):
        start, end = match.span(group)
        end = min(end, end_of_stem)
        if start < 0 or end <= start:
            continue
        start, end = _whole_numbers(text[:end_of_stem], start, end)
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    if not spans:
        return None
    joined = text[spans[0][0] : spans[0][1]]
    for (_, before), (start, end) in pairwise(spans):
        joined += ("/" if "/" in text[before:start] else "_") + text[start:end]
    return PurePosixPath(joined)


def _whole_numbers(text: str, start: int, end: int) -> tuple[int, int]:
    if text[start].isdigit():
        head = re.search(r"(?:\d+[.,])?\d*$", text[:start])
        start -= len(head[0]) if head else 0
    if text[end - 1].isdigit():
        tail = re.match(r"\d*(?:[.,]\d+)?", text[end:])
        end += len(tail[0]) if tail else 0
    return start, end


@lru_cache(maxsize=64)
def _regex(pattern: str) -> re.Pattern[str]:
    parts = []
    for part in PurePosixPath(pattern).parts:
        if part == "**":
            parts.append("(?:(.+)/)?")
            continue
        text, position = "", 0
        for wildcard in _WILDCARD.finditer(part):
            sign = wildcard[0]
            text += re.escape(part[position : wildcard.start()])
            inside = sign[1:-1].replace("\\", r"\\")
            text += "([^/]*)" if sign[0] == "*" else "([^/])" if sign == "?" else f"([{inside.replace('!', '^', 1)}])"
            position = wildcard.end()
        parts.append(text + re.escape(part[position:]) + "/")
    return re.compile("".join(parts).removesuffix("/"))
