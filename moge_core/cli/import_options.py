"""Options that importers share: what stored values mean, in one vocabulary, and what is asked of every importer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click
from click.types import FloatParamType

from moge_core.cli.common import EXIT_FINDINGS, verbose
from moge_core.datasets.importers.vocabulary import WORDS, Distortion, Orientation, Word, parse_unit
from moge_core.datasets.normal_axes import NO_NORMALS, NormalAxes
from moge_core.datasets.normal_axes import WORDS as AXES
from moge_core.errors import InputError

_PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")

Command = TypeVar("Command", bound=Callable[..., Any])


class SourcePath(click.Path):
    """What is imported: a folder, a file or, by default, either.

    Args:
        wanted: `folder` or `file`, where only the one will do.
    """

    def __init__(self, wanted: Literal["folder", "file"] | None = None) -> None:
        super().__init__(exists=True, path_type=Path)
        self.wanted = wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            click.BadParameter: it is not there, or is the other of the two.
        """
        path: Path = super().convert(value, param, ctx)  # type: ignore[assignment]  # by path_type
        if self.wanted == "folder" and not path.is_dir():
            if path.suffix.lower() in _PACKED:
                self.fail(f"{path} is an archive; unpack it and give the folder.", param, ctx)
            self.fail(f"{path} is a file; give the folder that the data are in.", param, ctx)
        if self.wanted == "file" and path.is_dir():
            self.fail(f"{path} is a folder; give the file.", param, ctx)
        return path


def value_options(also: Mapping[str, tuple[str, ...]] | None = None) -> Callable[[Command], Command]:
    """The vocabulary of stored values as options; see `vocabulary.WORDS`.

    Args:
        also: other spellings that a command has for a word, by the word.
    """
    also = also or {}
    return _all_of([_option(word, also.get(word.name, ())) for word in WORDS])


def common_import_options(*, label_type: str | None, label_help: str = "") -> Callable[[Command], Command]:
    """Options that every importer has, and -v; see `records.ImportSettings`.

    Args:
        label_type: the default of --label-type; None leaves it to the importer.
        label_help: how the importer finds it then.
    """
    return _all_of(
        [
            click.option(
                "-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The dataset to make."
            ),
            click.option("--name-prefix", default="", help="Put before every instance's path, for example 'desk/'."),
            click.option(
                "--label-type",
                default=label_type,
                show_default=label_type is not None,
                help=f"Loss set named in meta.json and in the printed configuration entry. {label_help}".rstrip(),
            ),
            click.option("--max-depth", type=_Number(), metavar="METRES", help="Depth beyond this becomes unknown."),
            click.option(
                "--resolution",
                type=click.Choice(["smaller", "image", "depth"]),
                default="smaller",
                show_default=True,
                help="Size of instances whose image and depth map differ in size.",
            ),
            click.option(
                "--normal-axes",
                default="opencv",
                show_default=True,
                callback=_parse_axes,
                metavar=f"{'|'.join((*AXES, NO_NORMALS))}|XYZ",
                help="Axes of normal maps: the camera's (opencv: y down, opengl: y up, z backward, or where x, y and z"
                " point, such as RUF: right, up, forward) or the world's; none leaves normal maps out.",
            ),
            click.option("--invert-mask", is_flag=True, help="Masks are true where depth cannot be trusted."),
            click.option(
                "--orientation",
                type=click.Choice(get_args(Orientation)),
                default="auto",
                show_default=True,
                help="Which picture depth and camera belong to where the image says by EXIF how to turn it.",
            ),
            click.option(
                "--distortion",
                type=click.Choice(get_args(Distortion)),
                default="undistort",
                show_default=True,
                help="What a camera's distortion is for: ignore it where pictures were undistorted already.",
            ),
            click.option(
                "--depth-at",
                callback=_parse_place,
                metavar="X,Y",
                help="First pixel of the depth map in the image, if it is a crop of it; the image is cropped alike, and"
                " the principal point moved. Negative if the image is a crop of the depth map.",
            ),
            click.option(
                "--prune",
                is_flag=True,
                help="Remove instances that an earlier import of this source left and that this one does not make.",
            ),
            click.option(
                "--dry-run", is_flag=True, help="Tell what would be understood, and write nothing into the dataset."
            ),
            click.option(
                "--dry-run-picture",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="Where the picture of a dry run goes. Default: the system's folder of temporary files.",
            ),
            click.option("--strict", is_flag=True, help=f"Exit with {EXIT_FINDINGS} if a frame could not be imported."),
            verbose,
        ]
    )


def typable(text: str, command: click.Command) -> str:
    """A remedy without the sentences that name options which this command does not have.

    Importers share what they say. Where a sentence tells of a table's columns besides, the command for tables keeps it.
    """
    known = {option for param in command.params for option in param.opts}
    sentences = _SENTENCE_END.split(text)
    kept = [
        sentence
        for sentence in sentences
        if known.issuperset(_OPTION.findall(sentence)) or (command.name == "table" and "table" in sentence)
    ]
    return " ".join(kept)


def _all_of(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(word: Word, also: tuple[str, ...]) -> Callable[[Command], Command]:
    help_text = word.help + (" May be repeated." if word.several else "")
    names = (word.option, *word.also, *also, word.name)
    if word.type == "unit":
        return click.option(*names, default="layout", callback=_parse_unit, metavar=word.metavar, help=help_text)
    kind: Any = click.Choice(word.choices) if word.choices else {"number": _Number(), "text": str}[word.type]
    return click.option(*names, type=kind, multiple=word.several, metavar=word.metavar, help=help_text)


class _Number(FloatParamType):
    """A number, whose refusal names a decimal comma."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            from moge_core.datasets.importers.usual_mistakes import decimal_comma

            if (fix := decimal_comma(value)) is None:
                raise
            self.fail(f"{value!r} is no number. {fix}", param, ctx)


def _parse_unit(_ctx: click.Context, _param: click.Parameter, text: str) -> float | str | None:
    if text == "layout":
        return text
    try:
        return parse_unit(text)
    except InputError as error:
        raise click.BadParameter(f"{error.rule}; found {error.found}") from error


def _parse_axes(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    try:
        return text if text == NO_NORMALS else NormalAxes.of(text).name
    except InputError as error:
        raise click.BadParameter(f"{error.rule}; found {error.found}") from error


def _parse_place(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        column, row = (int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no column and row, such as 40,44") from error
    return column, row
