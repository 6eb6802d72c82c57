"""One vocabulary in every importer: options, arguments and columns agree, and each remedy names what there is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.cli.import_options import typable
from moge_core.datasets import importers
from moge_core.datasets.importers.calls import Call
from moge_core.datasets.importers.records import ImportOptions
from moge_core.datasets.importers.table import OPTIONAL
from moge_core.datasets.importers.vocabulary import WORDS, GivenValues, ValueOptions
from moge_core.datasets.validation.catalogue import RULES

IMPORT_GROUP = cli.commands["import"]
assert isinstance(IMPORT_GROUP, click.Group)
# `presets` and the like only tell something.
COMMANDS = {
    name: command
    for name, command in IMPORT_GROUP.commands.items()
    if hasattr(importers, f"import_{name.replace('-', '_')}")
}
# Their depth is of points, which have no stored values.
OF_POINTS = {"dgp", "nuscenes"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# A command that a text names before its options.
NAMED_COMMAND = re.compile(r"`moge ([a-z-]+(?: [a-z-]+)?)")


def function_of(command: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importers, f"import_{command.replace('-', '_')}")
    return function


def options_of(command: click.Command) -> set[str]:
    return {option for param in command.params for option in param.opts}


def test_every_importer_has_a_command() -> None:
    named = {name.removeprefix("import_").replace("_", "-") for name in importers.__all__ if name.startswith("import_")}
    assert named == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_word_is_the_same_option_in_every_command(name: str) -> None:
    command = COMMANDS[name]
    params = {param.name: param for param in command.params}
    for word in WORDS:
        if name in OF_POINTS and word.name not in params:
            continue
        param = params[word.name]
        assert isinstance(param, click.Option)
        assert {word.option, *word.also} <= set(param.opts)
        assert param.help is not None
        assert param.help.startswith(word.help)
        assert param.multiple == word.several
        if word.choices:
            assert isinstance(param.type, click.Choice)
            assert tuple(param.type.choices) == word.choices
        owners = {other.name for other in command.params if {word.option, *word.also} & set(other.opts)}
        assert owners == {word.name}


@pytest.mark.parametrize("name", COMMANDS)
def test_keyword_arguments_and_options_say_the_same(name: str) -> None:
    """What a call from Python says can be typed, and what is typed can be said from Python."""
    function, command = function_of(name), COMMANDS[name]
    own = [param.name for param in inspect.signature(function).parameters.values() if param.kind is param.KEYWORD_ONLY]
    keywords = {*own, *ImportOptions.__annotations__} - {"progress"}
    if name in OF_POINTS:
        keywords -= set(ValueOptions.__annotations__) - {param.name for param in command.params}
    for keyword in sorted(keywords):
        value: Any = (1, 1) if keyword in {"intrinsics_size", "depth_at"} else "x"
        line = Call(name, "s", "o", {}).command(**{keyword: value})
        assert line is not None
        assert set(OPTION.findall(line)) <= options_of(command), keyword
    typed = {param.name for param in command.params} - {"source", "out", "strict", "verbose"}
    assert typed <= keywords


def test_python_tables_and_commands_have_the_same_words() -> None:
    names = {word.name for word in WORDS}
    assert set(ValueOptions.__annotations__) == names
    assert set(GivenValues.__dataclass_fields__) == names
    assert names <= set(OPTIONAL)
    assert names <= set(ImportOptions.__annotations__)


def texts_of_importers() -> Iterator[tuple[str, str | None, str]]:
    """Every text of the importers' code but docstrings: the file, the command that it is of, and the text."""
    folder = Path(importers.__file__).parent
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        owners = [
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "IMPORTER"
            and isinstance(node.value, ast.Constant)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield path.name, str(owners[0]) if owners else None, node.value


def test_an_importers_own_texts_name_its_own_options() -> None:
    anywhere = set().union(*(options_of(command) for command in COMMANDS.values()))
    for file, owner, text in texts_of_importers():
        known = anywhere if owner is None else options_of(COMMANDS[owner])
        assert set(OPTION.findall(text)) <= known, f"{file}: {text}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_no_option_that_it_does_not_have(name: str) -> None:
    command = COMMANDS[name]
    for _, _, text in texts_of_importers():
        left = typable(text, command)
        if not (name == "table" and "table" in left):
            assert set(OPTION.findall(left)) <= options_of(command)


def test_a_remedy_keeps_the_sentences_that_can_be_typed(tmp_path: Path) -> None:
    text = "The size is odd. Say --intrinsics-size, or the columns width and height of a table. Or crop."
    assert typable(text, COMMANDS["rgbd-folder"]) == text
    assert typable(text, COMMANDS["table"]) == text
    assert typable(text, COMMANDS["kitti"]) == "The size is odd. Or crop."

    cv2.imwrite(str(tmp_path / "i.png"), np.full((12, 16, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "d.png"), np.full((12, 16), 1500, np.uint16))
    (tmp_path / "t.csv").write_text("name,image,depth,fx,fy,cx,cy\na,i.png,d.png,20,20,40,5.5\n")
    result = CliRunner().invoke(cli, ["import", "table", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out")])
    assert "the columns width and height" in result.output


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_a_remedy_of_a_rule_names_options_that_there_are(rule: Any) -> None:
    """Of the command that the text names, or of an importer."""
    for text in (rule.fix, rule.fault):
        known = set().union(*(options_of(command) for command in COMMANDS.values()))
        for named in NAMED_COMMAND.findall(text):
            command: click.Command = cli
            for word in named.split():
                if isinstance(command, click.Group) and word in command.commands:
                    command = command.commands[word]
            known |= options_of(command)
        assert set(OPTION.findall(text)) <= known
