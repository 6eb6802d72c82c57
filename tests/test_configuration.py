"""Configuration files: comments, strictness, and errors that name file and key."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from moge_core.configuration import StrictModel, changed_keys, deep_merge, load_json, parse_as, parse_json
from moge_core.errors import ConfigError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(string.printable, max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


class Inner(StrictModel):
    size: int = Field(1, ge=1)


class Outer(StrictModel):
    name: str
    parts: list[Inner] = Field(default_factory=list)


@given(st.dictionaries(st.text(max_size=6), JSON, max_size=4), st.sampled_from(["#", "//"]))
def test_comments_change_nothing_and_strings_keep_what_looks_like_one(values: dict[str, Any], mark: str) -> None:
    text = json.dumps(values, indent=1)
    commented = "\n".join(f'{line}  {mark} a "comment", {{' for line in text.split("\n"))
    assert parse_json(commented, "x") == values


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(ConfigError, match=r"bad\.json:2"):
        load_json(path)


@pytest.mark.parametrize("text", ["[1]", "{'a': 1}", '{"a": NaN}', '{"a": 1, "a": 2}', "", "[" * 100_000])
def test_what_is_not_a_plain_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_json(text, "x")


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_json(tmp_path / "absent.json")


def test_a_misspelt_key_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"file\.json: parts\.0\.sise: is not a known key.*Did you mean `size`"):
        parse_as(Outer, {"name": "a", "parts": [{"sise": 2}]}, "file.json")


def test_a_wrong_value_is_told_with_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"file\.json: parts\.1\.size: .*greater than or equal to 1.*found 0"):
        parse_as(Outer, {"name": "a", "parts": [{"size": 2}, {"size": 0}]}, "file.json")


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_merging_a_configuration_over_itself_changes_nothing(values: dict[str, Any]) -> None:
    assert deep_merge(values, values) == values
    assert changed_keys(values, values) == []


def test_overrides_replace_lists_and_merge_objects() -> None:
    base = {"a": {"b": [1, 2], "c": 3}, "d": 4}
    merged = deep_merge(base, {"a": {"b": [9]}})
    assert merged == {"a": {"b": [9], "c": 3}, "d": 4}
    assert changed_keys(base, merged) == ["a.b"]


def test_an_override_of_another_type_brings_its_own_keys() -> None:
    base = {"lr_scheduler": {"type": "StepLR", "params": {"gamma": 0.5}}}
    other = {"type": "ConstantLR", "params": {"factor": 1.0}}
    assert deep_merge(base, {"lr_scheduler": other}) == {"lr_scheduler": other}
