"""Any data that a table describes: one row a frame, with its files, its camera and the meaning of its depth values.

    name,image,depth,fx,fy,cx,cy,scale
    kitchen/0001,rgb/0001.jpg,depth/0001.png,525,525,319.5,239.5,1000

CSV (commas, semicolons or tabs) with the columns in its first line, or JSONL, one object a line. Paths are relative to
the table's folder; `depth` may name an array of its file too, as in `depths.npz:depth`. What may stand there besides:

    width height          size that the intrinsics refer to, where that is not the image's
    camera_model          of the lens: OPENCV (the default where there are coefficients) or OPENCV_FISHEYE
    k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tx ty
                          its coefficients, by OpenCV's names
    kind scale offset encoding invalid infinite infinite_from depth_unit depth_array baseline doffs
                          what stored values mean, as the options of all importers say it, see `vocabulary`; what a
                          row leaves empty is as the options say, and else: z, 1000 units a metre for integers and 1
                          for floats, in metres
    normal                PNG as the dataset has it, a picture of 8 bits or an array (H, W, 3), in the axes that
                          `normal_axes` says
    mask                  PNG or array; where it is zero the depth is unknown
    segmentation          PNG of ids, with names where it has the text field `labels`, or an array
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.distortion import COEFFICIENTS, distortion_of
from moge_core.datasets.importers.distortion_mappings import says_of_lens
from moge_core.datasets.importers.map_files import read_mask_file, read_normal_file, read_segmentation_file
from moge_core.datasets.importers.mapping_values import as_floats, plain_name
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.usual_mistakes import decimal_comma, found_file, why_missing
from moge_core.datasets.importers.vocabulary import WORDS, GivenValues, Word, parse_unit
from moge_core.datasets.importers.writing import ImportReport, Repeatable, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress, is_instance_path
from moge_core.errors import FormatError, MoGeError
from moge_core.io import limits
from moge_core.io.files import read_bytes

IMPORTER = "table"

# Lens distortion, by OpenCV's names.
_COEFFICIENTS = tuple(dict.fromkeys(name for names in COEFFICIENTS.values() for name in names))
NEEDED = ("name", "image", "depth", "fx", "fy", "cx", "cy")
OPTIONAL = (
    "width",
    "height",
    "camera_model",
    *_COEFFICIENTS,
    *(word.name for word in WORDS),
    "normal",
    "mask",
    "segmentation",
)

_KNOWN = frozenset({*NEEDED, *OPTIONAL})
# Other spellings that options have: depth_scale and disparity_scale are scale.
_SAME_COLUMN = {other.removeprefix("--").replace("-", "_"): word.name for word in WORDS for other in word.also}
# A list of so many numbers under a name that speaks of a lens is one of coefficients.
_LEAST_COEFFICIENTS = 4

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".txt": ",;\t"}
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson"})


@repeatable(IMPORTER)
def import_table(
    source: str | Path,
    out_dir: str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Make a dataset of the frames of a table, or bring one made earlier up to date.

    Args:
        source: the table, see above.
        out_dir: the dataset to make or add to.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain.
        FormatError: no table, or one without a column that is needed.
        DatasetError: no such file, or no row that could be imported.
    """
    path, out = check_folders(source, out_dir)
    settings = ImportSettings.of(options)
    # Two passes, so that a table of a million rows is never held: the first looks at the columns.
    table = _Table.read(path)
    columns: dict[str, None] = {}
    of_lenses: dict[str, None] = {}
    num_rows = 0
    for row in table.rows():
        columns |= dict.fromkeys(row.values)
        of_lenses |= dict.fromkeys(column for column, value in row.values.items() if _is_unread_lens(column, value))
        num_rows += 1
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise FormatError(
            path,
            f"must have the columns {', '.join(NEEDED)}",
            found=f"no {', '.join(missing)} among {', '.join(columns) or 'none'}",
        )
    unknown = [column for column in columns if column not in _KNOWN]
    if of_lenses and settings.distortion != "ignore":
        raise FormatError(
            path,
            f"must say distortion in the columns camera_model, {', '.join(_COEFFICIENTS)}",
            found=", ".join(of_lenses),
            fix="Rename these columns, or say --distortion ignore if the pictures were undistorted already.",
        )
    notes = [f"These columns are not known and were passed by: {', '.join(unknown)}."] if unknown else []
    return run_import(
        IMPORTER,
        path,
        out,
        Repeatable(lambda: _records(path, table.rows(), settings.values)),
        # What is said of values is in the rows' records already.
        replace(settings, values=GivenValues()),
        options=settings.values.said(),
        notes=notes,
        identity=path.name,
        total=num_rows,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: its number among the rows, its line in the file, and what stands there; or why nothing can be read."""

    number: int
    line: int
    values: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class _Table:
    """The text of a table, and how its rows are read."""

    path: Path
    text: str
    delimiters: str | None
    """None where each line is a JSON object."""

    @classmethod
    def read(cls, path: Path) -> _Table:
        suffix = path.suffix.lower()
        if suffix not in {*_DELIMITERS, *_JSON_SUFFIXES} or not path.is_file():
            suffixes = ", ".join(sorted({*_DELIMITERS, *_JSON_SUFFIXES}))
            raise FormatError(path, f"must be a table, one of {suffixes}", found=suffix or "no such suffix")
        try:
            text = read_bytes(path, limit=limits.MAX_FILE_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(path, "must be UTF-8 text", found=error, fix="Save it as UTF-8.") from error
        return cls(path, text, _DELIMITERS.get(suffix))

    def rows(self) -> Iterator[_Row]:
        """Every row in order, also those that cannot be read."""
        return _json_rows(self.text) if self.delimiters is None else _csv_rows(self.text, self.path, self.delimiters)


def _json_rows(text: str) -> Iterator[_Row]:
    number = 0
    for line, content in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not content.strip():
            continue
        number += 1
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield _Row(number, line, {}, f"no JSON: {error}")
            continue
        if isinstance(values, dict):
            named = {_column(key): value for key, value in values.items()}
            yield _Row(number, line, named, "" if len(named) == len(values) else "a column twice, by two names")
        else:
            yield _Row(number, line, {}, "no JSON object")


def _csv_rows(text: str, path: Path, delimiters: str) -> Iterator[_Row]:
    heading = text.lstrip().split("\n", 1)[0]
    delimiter = max(delimiters, key=heading.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    number = 0
    while True:
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if columns is None:
                raise FormatError(f"{path}:{reader.line_num}", "must be a CSV table", found=error) from error
            number += 1
            yield _Row(number, reader.line_num, dict.fromkeys(columns, ""), f"no CSV: {error}")
            continue
        if not any(value.strip() for value in values):
            continue
        if columns is None:
            columns = [_column(value) for value in values]
            repeated = sorted({column for column in columns if columns.count(column) > 1})
            if repeated:
                raise FormatError(path, "must name each column once", found=f"{', '.join(repeated)} twice")
            continue
        number += 1
        found = dict(zip(columns, values, strict=False)) | dict.fromkeys(columns[len(values) :], "")
        many = len(values) > len(columns) and any(value.strip() for value in values[len(columns) :])
        problem = (
            f"{len(values)} values for {len(columns)} columns; one with a comma in it must be in quotes" if many else ""
        )
        yield _Row(number, reader.line_num, found, problem)
    if not number:
        # A table without rows still has columns to check.
        yield _Row(0, 1, dict.fromkeys(columns or (), ""), "a table without rows")


def _column(name: str) -> str:
    """A column by the name that is used here."""
    name = name.strip().lower()
    return _SAME_COLUMN.get(name, name)


def _is_unread_lens(column: str, value: Any) -> bool:
    """Whether a column that is not read says that pictures are distorted."""
    if column in _KNOWN or not says_of_lens(plain_name(column), None):
        return False
    numbers = as_floats(value)
    if numbers is not None:
        # A single number by so short a name as d is a distance as often.
        is_certain = len(numbers) >= _LEAST_COEFFICIENTS or "distort" in column or column[-1:].isdigit()
        return is_certain and any(numbers)
    return isinstance(value, str) and bool(value.strip()) and distortion_of([value], {}, (), column)[0] is not None


def _records(path: Path, rows: Iterable[_Row], given: GivenValues) -> Iterator[Record | Finding]:
    first: dict[str, int] = {}
    for row in rows:
        where = f"{path.name} row {row.number} (line {row.line})"
        fix = "Mend the row."
        try:
            if row.problem:
                raise FormatError(where, "must be a frame", found=row.problem)
            name = _name(row.values, where)
            if name in first:
                rule = f"must have a name of its own; row {first[name]} is {name!r} too"
                raise FormatError(where, rule, fix="Give each row a name of its own.")
            first[name] = row.number
            yield _record(path, name, row.values, where, given)
        except MoGeError as error:
            evidence = f"{error.where}: {error.rule}" if error.where != where else error.rule
            evidence += f"; found {error.found}" if error.found else ""
            yield Finding(where, "importable", "error", evidence, error.fix or fix)
        except OSError as error:
            yield Finding(where, "importable", "error", str(error), fix)


def _name(values: Mapping[str, Any], where: str) -> str:
    name = values.get("name")
    name = str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
    if not name:
        raise FormatError(where, "must have a name", found=repr(values.get("name")))
    if not is_instance_path(name):
        fix = "Separate folders by /." if "\\" in name else None
        raise FormatError(where, "must have a name that is a path inside the dataset", found=repr(name), fix=fix)
    return PurePosixPath(name).as_posix()


def _record(path: Path, name: str, values: Mapping[str, Any], where: str, given: GivenValues) -> Record:
    camera, notes = _camera(values, where)
    words = {word.name: _value(word, values) for word in WORDS if _given(values, word.name)}
    depth, array = _depth_file(path, values)
    if array is not None and words.setdefault("depth_array", array) != array:
        rule = "must name the array that is behind the file in the column depth, or nothing"
        raise FormatError("depth_array", rule, found=f"{words['depth_array']!r} and {array!r}")
    said = GivenValues.of(words)
    others = {key: _file(path, values, key) for key in ("normal", "mask", "segmentation") if _given(values, key)}
    segmentation = others.get("segmentation")
    record = Record(
        name,
        Stored(_file(path, values, "image")),
        StoredDepth(depth),
        camera,
        normal=Stored(others["normal"], read_normal_file) if "normal" in others else None,
        mask=Stored(others["mask"], read_mask_file) if "mask" in others else None,
        segmentation=None if segmentation is None else Stored(segmentation, read_segmentation_file),
        labels={} if segmentation is None else _labels(segmentation),
        notes=notes,
        size_is_said_by="the columns width and height",
    )
    return said.over(given).applied_to(record)


def _value(word: Word, values: Mapping[str, Any]) -> Any:
    """What a row says by a word of the vocabulary."""
    value = values[word.name]
    if word.several:
        several = value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
        return tuple(_as_number(one, word.name) for one in several)
    if word.type == "number":
        return _as_number(value, word.name)
    if word.type == "unit":
        return parse_unit(str(value))
    return str(value).strip().lower() if word.choices else str(value).strip()


def _camera(values: Mapping[str, Any], where: str) -> tuple[PixelIntrinsics, tuple[str, ...]]:
    fx, fy, cx, cy = (_needed_number(values, key) for key in ("fx", "fy", "cx", "cy"))
    camera = intrinsics_from_matrix([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], where)
    width, height = _number(values, "width"), _number(values, "height")
    if (width is None) != (height is None):
        raise FormatError(where, "must have both width and height, or neither", found=f"{width} and {height}")
    size = None
    if width is not None and height is not None:
        if width < 1 or height < 1 or width != int(width) or height != int(height):
            raise FormatError(where, "must have a width and a height in pixels", found=f"{width:g} x {height:g}")
        size = int(width), int(height)
    notes = ("A negative fy was taken as |fy|; image and depth were left as they are.",) if fy < 0 else ()
    named = {key: number for key in _COEFFICIENTS if (number := _number(values, key)) is not None}
    model = [str(values["camera_model"])] if _given(values, "camera_model") else []
    distortion, more = distortion_of(model, named, (), where)
    return replace(camera, fy=abs(fy), size=size, distortion=distortion), (*notes, *more)


def _given(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    return not (value is None or (isinstance(value, str) and not value.strip()))


def _number(values: Mapping[str, Any], key: str) -> float | None:
    return _as_number(values[key], key) if _given(values, key) else None


def _needed_number(values: Mapping[str, Any], key: str) -> float:
    number = _number(values, key)
    if number is None or not math.isfinite(number):
        raise FormatError(key, "must be a finite number", found=repr(values.get(key)))
    return number


def _as_number(value: Any, key: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise FormatError(key, "must be a number", found=repr(value), fix=decimal_comma(value)) from None


def _file(table: Path, values: Mapping[str, Any], key: str) -> Path:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise FormatError(key, "must name a file", found=repr(value))
    path = found_file(table.parent, value.strip())
    if path is None:
        fix = why_missing(table.parent, value.strip())
        raise FormatError(key, "must name a file that is there", found=value.strip(), fix=fix)
    return path


def _depth_file(table: Path, values: Mapping[str, Any]) -> tuple[Path, str | None]:
    """The depth file of a row, and the array of it where one is named behind a colon: `depths.npz:depth`."""
    value = values.get("depth")
    name, colon, array = value.strip().rpartition(":") if isinstance(value, str) else ("", "", "")
    if colon and array and "\0" not in name and (table.parent / name).is_file():
        assert isinstance(value, str)
        if not (table.parent / value.strip()).is_file():
            return table.parent / name, array
    return _file(table, values, "depth"), None


def _labels(path: Path) -> Mapping[str, int]:
    from moge_core.io.segmentation import read_segmentation_labels

    return (read_segmentation_labels(path) if path.suffix.lower() == ".png" else None) or {}
