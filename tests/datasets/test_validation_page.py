"""docs/validation.md and the code say the same of every rule and threshold."""

from __future__ import annotations

from pathlib import Path

from planted_faults import FAULTS

from moge_core.datasets import RULES, ValidationSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "validation.md"


def test_the_page_explains_every_rule_as_the_catalogue_has_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for rule in RULES.values():
        assert f"| `{rule.id}` | {rule.severity} | {rule.seen_by} | {rule.promise} |" in text


def test_the_page_names_every_threshold_with_its_default() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, value in ValidationSettings():
        shown = "none" if value in ((), {}) else ", ".join(value) if isinstance(value, tuple) else f"{value:g}"
        assert f"| `{name}` | {shown} |" in text


def test_the_page_shows_every_planted_fault() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, fault in FAULTS.items():
        assert f"| {name} | `{fault.rule}` |" in text
