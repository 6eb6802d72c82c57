"""What an importer was called with, and the command line that asks for the same again.

    @repeatable(IMPORTER)
    def import_layout(source, out_dir, *, own_option=None, progress=None, **options: Unpack[ImportOptions]): ...

Within such a function `current_call` tells what its caller said: for the log, for dry runs, and for remedies that can
be typed as they are printed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings
from moge_core.datasets.importers.vocabulary import GivenValues

P = ParamSpec("P")
R = TypeVar("R")

# Options whose name is not that of the keyword argument.
_SPELLINGS: Mapping[str, str] = {
    "image_glob": "--image",
    "depth_glob": "--depth",
    "cameras": "--camera",
    "images_dir": "--images",
    "calib_dir": "--calib",
}
# Options that name files by texts.
_FILES = frozenset({"intrinsics", "images_dir", "calib_dir", "camera_parameters"})
# From here on not every whole number is a float.
_LEAST_INEXACT = 2**53
# Asked for this one time; what repeats an import leaves them out.
_ONCE = frozenset({"prune", "dry_run", "dry_run_picture"})


@dataclass(frozen=True)
class Call:
    """A call of an importer.

    Attributes:
        importer: its name, which is that of its command.
        source, out: as they were given.
        options: all keyword arguments that do not have their default, by name.
    """

    importer: str
    source: str | Path
    out: str | Path
    options: Mapping[str, Any]

    def command(self, *, source: Path | None = None, out: Path | None = None, **more: Any) -> str | None:
        """The command line of this call, quoted for a shell; None where it has a camera that four numbers do not tell.

        Args:
            source, out: absolute paths to write in place of those that were given; other files are then written by
                their absolute paths too, so that the line can be typed anywhere.
            more: options besides, by name.
        """
        anywhere = source is not None or out is not None
        words = ["moge", "import", self.importer, str(source or self.source), "-o", str(out or self.out)]
        for name, value in (self.said() | more).items():
            if isinstance(value, PixelIntrinsics) and value != PixelIntrinsics(value.fx, value.fy, value.cx, value.cy):
                return None
            words += _typed(name, value, anywhere=anywhere)
        return shlex.join(words)

    def said(self) -> dict[str, Any]:
        """The options that decide what an import makes."""
        return {name: value for name, value in self.options.items() if name not in _ONCE}

    def for_log(self) -> dict[str, Any]:
        """The options as JSON has them, infinite and unknown numbers as texts."""
        return {name: _as_json(value) for name, value in self.said().items()}


_CALL: ContextVar[Call | None] = ContextVar("moge_import_call", default=None)


def repeatable(importer: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of an importer `f(source, out, **options)`: what it is called with can be asked for within."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            token = _CALL.set(_call(importer, signature, signature.bind(*args, **kwargs).arguments))
            try:
                return function(*args, **kwargs)
            finally:
                _CALL.reset(token)

        return run

    return decorate


def current_call() -> Call | None:
    """What the importer that is running was called with; None where it is not `repeatable`."""
    return _CALL.get()


def _call(importer: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> Call:
    (source, out), rest = list(arguments.items())[:2], dict(list(arguments.items())[2:])
    rest.pop("progress", None)
    variable = next((one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD), "")
    rest |= rest.pop(variable, {})
    defaults = {one.name: one.default for one in signature.parameters.values()} | _common_defaults()
    options = {name: value for name, value in rest.items() if not _is_default(name, value, defaults.get(name))}
    return Call(importer, source[1], out[1], options)


def _common_defaults() -> dict[str, Any]:
    settings, values = ImportSettings(), GivenValues()
    defaults = {one.name: getattr(settings, one.name) for one in fields(settings)}
    # Importers differ in their label type, so that what is said of it is always kept.
    del defaults["values"], defaults["label_type"]
    return defaults | {one.name: getattr(values, one.name) for one in fields(values)}


def _is_default(name: str, value: Any, default: Any) -> bool:
    if value is None:
        return name != "depth_unit"
    # Commands hand over () where an option that may be repeated was not given.
    return bool(type(value) is type(default) and value == default) or value == ()


def _typed(name: str, value: Any, *, anywhere: bool) -> list[str]:
    """The words of a command line that give this option this value."""
    option = _SPELLINGS.get(name, "--" + name.replace("_", "-"))
    if isinstance(value, bool):
        return [option] if value else []
    if name == "intrinsics_size":
        return [option, "x".join(map(str, value))]
    if name == "depth_at":
        return [option, ",".join(map(str, value))]
    if name == "depth_unit" and value is None:
        return [option, "none"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [word for one in value for word in _typed(name, one, anywhere=anywhere)]
    is_file = isinstance(value, Path) or name in _FILES
    return [option, _absolute(_text(value)) if anywhere and is_file else _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, PixelIntrinsics):
        return ",".join(_text(number) for number in (value.fx, value.fy, value.cx, value.cy))
    if isinstance(value, float) and value.is_integer() and abs(value) < _LEAST_INEXACT:
        return str(int(value))
    return str(value)


def _absolute(text: str) -> str:
    """The absolute path of what is there, also where `:` and the name of a part follow; other texts as they are."""
    path, colon, part = text.rpartition(":")
    for name, rest in ((text, ""), (path, colon + part)):
        # Four numbers may be longer than any file's name.
        with contextlib.suppress(OSError, ValueError):
            if name and Path(name).exists():
                return str(Path(name).absolute()) + rest
    return text


def _as_json(value: Any) -> Any:
    if isinstance(value, PixelIntrinsics):
        return _as_json({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, Mapping):
        return {str(name): _as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
