"""A dataset on disk: which files an instance has, how instances are found, and what a list of them may say.

    dataset/
    ├── .index.txt             one instance a line: relative to the dataset, `/` between folders, sorted
    ├── .moge/                 kept by this package: manifest.parquet, lists.json, quarantine.json, import.jsonl and
    │                          what else imports keep (import.begun.json, replaced_meta.jsonl)
    └── any/folders/instance/
        ├── image.jpg          RGB
        ├── depth.png          16-bit logarithmic depth; a configuration may name another file
        └── meta.json          {"intrinsics": 3x3 normalised, ...}

A dataset is its folder and nothing beyond: no list entry and no link may lead out of it, and nothing is written
through one that does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from moge_core.errors import DatasetError, InputError, InstanceError, MissingIndexError

IMAGE_NAME = "image.jpg"
DEPTH_NAME = "depth.png"
META_NAME = "meta.json"
POSE_KEYS = ("pose", "camera_to_world", "cam2world")
"""Keys of meta.json under which a pose may stand: camera to world, (4, 4), OpenCV axes."""
NORMAL_NAME, MASK_NAME, SEGMENTATION_NAME = "normal.png", "mask.png", "segmentation.png"
INDEX_NAME, TRAIN_NAME, VALIDATION_NAME = ".index.txt", ".train.txt", ".val.txt"
LIST_NAMES = (INDEX_NAME, TRAIN_NAME, VALIDATION_NAME)
STATE_DIR, REPORT_DIR, POINT_CLOUD_DIR = ".moge", "report", "pointclouds"

# What a user decides about a dataset. Thresholds are only read, so they may be shared by a link.
QUARANTINE_NAME, _SETTINGS_NAME = "quarantine.json", "validation.json"

MAX_LIST_BYTES = 512 << 20

# What `moge inspect` leaves in an instance; it says nothing about the data.
INSPECTION_NAMES = frozenset({"pointcloud.ply", "depth_vis.png"})

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each piece of work."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one instance.

    Attributes:
        instance: the instance as a list would name it (or a folder or list, for what belongs to no instance).
        rule: id of the broken rule, such as `sizes-agree`; `validation.RULES` explains each.
        severity: `error` when the instance cannot be trained on, else `warning`.
        evidence: what was found.
        fix: what to do about it.
    """

    instance: str
    rule: str
    severity: Literal["error", "warning"]
    evidence: str
    fix: str

    def __post_init__(self) -> None:
        """Escape bytes that are no UTF-8: a file may be called so, and no table, JSON or terminal takes them."""
        for name in ("instance", "evidence", "fix"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode())

    def __str__(self) -> str:
        return f"{self.severity} {self.rule} {self.instance}: {self.evidence}. {self.fix}"


def resolve_dataset(dataset_dir: str | Path) -> Path:
    """Absolute path of a dataset's folder; the folder itself may be a link.

    Raises:
        DatasetError: there is no such folder, or it is a single instance.
    """
    root = Path(dataset_dir).resolve()
    if not root.is_dir():
        raise DatasetError(
            dataset_dir, "must be a dataset's folder", found="no such folder" if not root.exists() else "a file"
        )
    if (root / META_NAME).is_file():
        raise DatasetError(
            dataset_dir,
            "must be a dataset, a folder with instances below it",
            found=f"a single instance (it holds {META_NAME} itself)",
            fix=f"Name the dataset's folder, for example {root.parent}.",
        )
    return root


def check_state(root: Path) -> None:
    """Refuse a dataset where what this package writes (lists and `.moge/`) would land outside, or in no file.

    Raises:
        DatasetError: naming the link that leads out, or what is no file.
    """
    state = root / STATE_DIR
    for name in LIST_NAMES:
        _check_place(root, root / name)
        if (root / name).is_dir():
            raise DatasetError(root / name, "must be a file", found="a folder", fix="Rename it.")
    _check_place(root, state)
    report = state / REPORT_DIR
    for folder in (state, report, report / POINT_CLOUD_DIR):
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # whoever writes there says so
        for entry in entries:
            if folder != state or entry.name != _SETTINGS_NAME:
                _check_place(root, Path(entry.path))


def _check_place(root: Path, path: Path) -> None:
    # A link that leads nowhere counts too: writing would make the file that it names.
    target = path.resolve() if path.is_symlink() else path
    if not target.is_relative_to(root):
        raise DatasetError(
            path,
            "must lie inside the dataset, because this package writes there",
            found=f"a link to {target}",
            fix="Replace the link by what it points to, or remove it.",
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DatasetError(path, "must be a file", found="a pipe, socket or device", fix="Remove it.")


def read_state(path: Path, limit: int) -> bytes:
    """Contents of a list or of a file in `.moge/`, which must be a file and no pipe that would be waited for.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: no regular file, larger than `limit` bytes, or not readable.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
            raise DatasetError(path, "must be a file", found=kind, fix="Rename or remove it.")
        if found.st_size > limit:
            raise DatasetError(path, f"must have at most {limit >> 20} MiB", found=f"{found.st_size >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DatasetError(path, "must be readable", found=error) from error


def scan_instances(root: Path) -> tuple[list[str], list[Finding]]:
    """Every folder below `root` that holds a meta.json, sorted as POSIX paths, and what the walk had to pass by.

    Linked folders are not entered: they could lead out of the dataset, in circles, or to the same instance twice.
    """
    instances: list[str] = []
    findings: list[Finding] = []
    top = os.fspath(root)
    stack = [top]
    while stack:
        folder = stack.pop()
        # Plain strings: a Path for each of a million folders costs more than reading it.
        where = folder[len(top) + 1 :] or "."
        is_instance, has_image = False, False
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name == META_NAME:
                        is_instance = folder != top
                    elif entry.is_dir(follow_symlinks=False):
                        if entry.name != STATE_DIR:
                            stack.append(entry.path)
                    elif entry.is_symlink() and entry.is_dir():
                        findings.append(_link_not_entered(entry, top))
                    elif entry.name == IMAGE_NAME:
                        has_image = True
        except OSError as error:
            findings.append(
                Finding(where, "folder-readable", "error", str(error), "Give this user the right to read the folder.")
            )
            continue
        if is_instance and _fits_a_line(where):
            instances.append(where)
        elif is_instance:
            evidence = "the path has a line break, a backslash or bytes that are no UTF-8"
            findings.append(Finding(repr(where), "listable-path", "error", evidence, "Rename the folder."))
        elif has_image and folder != top:
            evidence = f"{IMAGE_NAME} lies there without {META_NAME}, so this is no instance"
            findings.append(Finding(where, "files-present", "error", evidence, "Add the camera, or remove the folder."))
    instances.sort()
    findings.sort(key=lambda finding: finding.instance)
    return instances, findings


def _link_not_entered(entry: os.DirEntry[str], top: str) -> Finding:
    target = Path(entry.path).readlink()
    return Finding(
        entry.path[len(top) + 1 :],
        "inside-root",
        "warning",
        f"a link to {target}; linked folders are not entered",
        "Move or copy the data here, or make the linked folder a dataset of its own.",
    )


def read_index(dataset_dir: str | Path, index_name: str = INDEX_NAME) -> list[str]:
    """Instances that a list of the dataset names, in the list's order.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: a line is blank, absolute, leaves the dataset (by `..` or through a link) or is no plain POSIX
            path, or the list is empty or no UTF-8 text file.
    """
    instances = []
    for line, problem in check_index(dataset_dir, index_name):
        if problem is not None:
            raise problem
        instances.append(line)
    return instances


def check_index(dataset_dir: str | Path, index_name: str = INDEX_NAME) -> Iterator[tuple[str, DatasetError | None]]:
    """Every line of a list, with what is wrong with it.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: the list is empty or no UTF-8 text file.
    """
    root = Path(dataset_dir).resolve()
    path = index_path(root, index_name)
    inside: dict[str, bool] = {}
    for number, line in enumerate(lines_of_index(root, index_name), start=1):
        yield line, _problem_of_entry(root, line, f"{path}:{number}", inside)


def lines_of_index(root: Path, index_name: str) -> list[str]:
    """Lines of a list that must be there, whatever they say.

    Raises:
        MissingIndexError, DatasetError: as `check_index`.
    """
    path = index_path(root, index_name)
    try:
        lines = read_list_lines(path)
    except FileNotFoundError:
        raise MissingIndexError(
            path, "must list the dataset's instances", found="no such file", fix=missing_index_fix(root, index_name)
        ) from None
    if not lines:
        raise DatasetError(path, "must list at least one instance", found="an empty file")
    return lines


def read_list_lines(path: Path) -> list[str]:
    """Lines of a list, whatever they say.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: no UTF-8 text file.
    """
    try:
        return read_state(path, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(path, "must be a readable UTF-8 text file", found=error) from error


def _problem_of_entry(root: Path, line: str, where: str, inside: dict[str, bool]) -> DatasetError | None:
    try:
        check_entry(line, where=where)
    except DatasetError as problem:
        return problem
    if stays_inside(root, line, inside):
        return None
    return DatasetError(
        where,
        "must name a folder inside the dataset",
        found=f"{line!r}, which a link leads out to {(root / line).resolve()}",
        fix="Copy the data into the dataset, or make the linked folder a dataset of its own.",
    )


def index_path(root: Path, index_name: str) -> Path:
    """Path of a list; its name must not leave the dataset.

    Raises:
        InputError: `index_name` is absolute or has `..` in it.
    """
    name = PurePosixPath(index_name)
    if not index_name or name.is_absolute() or ".." in name.parts:
        raise InputError("index_name", "must be a file name inside the dataset", found=repr(index_name))
    return root / name


def missing_index_fix(root: Path, index_name: str) -> str:
    """What to do about a list that is not there. Only the full list can be made from a scan; a split is a choice."""
    if index_name == INDEX_NAME:
        return f"Make it with `moge index {root}`."
    return f"Write it, one instance a line, then check it with `moge index {root} --index {index_name}`."


def check_entry(line: str, where: object) -> None:
    """Refuse a list entry that is not a plain relative POSIX path, in the one way in which it can be written.

    Raises:
        DatasetError: naming `where`.
    """
    plain = plain_entry(line, where)
    if plain != line:
        # Another spelling would pass for another instance.
        rule = "must be an instance's path without `.`, `//` and a `/` at the end"
        raise DatasetError(where, rule, found=repr(line), fix=f"Write {plain!r}.")


def plain_entry(line: str, where: object) -> str:
    """The plain way to write a relative POSIX path: `a/b` for `./a//b/`.

    Raises:
        DatasetError: the path is blank, absolute, leaves the dataset or has backslashes; naming `where`.
    """
    rule = "must be an instance's path relative to the dataset"
    if not line.strip():
        raise DatasetError(where, rule, found="a blank line", fix="Delete the line.")
    if line.startswith("/") or (line[1:2] == ":" and line[0].isalpha()):
        raise DatasetError(where, rule, found=f"the absolute path {line!r}", fix="Cut the dataset's folder off it.")
    if "\\" in line:
        raise DatasetError(where, rule, found=f"backslashes in {line!r}", fix="Write `/` between folders.")
    parts = [part for part in line.split("/") if part not in {"", "."}]
    if ".." in parts or not parts or "\0" in line:
        raise DatasetError(where, rule, found=repr(line), fix="An instance lies inside the dataset's folder.")
    return "/".join(parts)


def check_instance_links(root: Path, instance: str, file_names: tuple[str, ...]) -> None:
    """Refuse an instance whose folder or files are links that lead out of the dataset.

    Raises:
        InstanceError: naming the link and where it leads.
    """
    for path in (root / instance, *(root / instance / name for name in file_names)):
        target = path.resolve()
        if not target.is_relative_to(root):
            raise InstanceError(
                path,
                "must lie inside the dataset",
                found=f"a link to {target}",
                fix="Copy the data into the dataset instead of linking it.",
            )


def data_files(root: Path) -> Iterator[os.DirEntry[str]]:
    """The data itself: files of all instances, lists at the top, and the quarantine and thresholds in `.moge/`.

    What is told of the data does not count: the rest of `.moge/`, what inspection leaves, and the JSON file that
    `moge complete` writes beside a depth map.
    """
    stack = [root]
    if (root / STATE_DIR).is_dir():
        decided = {QUARANTINE_NAME, _SETTINGS_NAME}
        yield from (entry for entry in os.scandir(root / STATE_DIR) if entry.name in decided and entry.is_file())
    while stack:
        folder = stack.pop()
        entries = list(os.scandir(folder))
        names = {entry.name for entry in entries}
        is_instance = META_NAME in names
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != STATE_DIR:
                    stack.append(Path(entry.path))
            elif folder == root:
                if entry.name.startswith(".") and entry.name.endswith(".txt") and entry.is_file():
                    yield entry
            elif is_instance and not _is_told_of_data(entry.name, names) and entry.is_file():
                yield entry


def _is_told_of_data(name: str, beside: set[str]) -> bool:
    describes_map = name.endswith(".json") and name != META_NAME and f"{name[:-5]}.png" in beside
    return describes_map or name in INSPECTION_NAMES


def is_instance_path(instance: str) -> bool:
    """True for a path that may name a new instance: relative, plain, on one line, not hidden as `.moge/` is."""
    parts = PurePosixPath(instance).parts
    plain = bool(parts) and ".." not in parts and not PurePosixPath(instance).is_absolute() and "\0" not in instance
    return plain and not parts[0].startswith(".") and _fits_a_line(instance)


def _fits_a_line(instance: str) -> bool:
    try:
        instance.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return instance.splitlines() == [instance] and "\\" not in instance and bool(instance.strip())


def stays_inside(root: Path, instance: str, known: dict[str, bool]) -> bool:
    """True where neither the folder of an instance nor one above it is a link out of the dataset.

    `known` remembers the answers for the next instance.
    """
    # Instances share their parent folders, so each folder is looked at once.
    if instance not in known:
        parent = instance.rpartition("/")[0] or "."
        inside = parent == "." or stays_inside(root, parent, known)
        path = f"{root}/{instance}"
        known[instance] = inside and (
            not os.path.islink(path)  # noqa: PTH114 - see `scan_instances`
            or Path(path).resolve().is_relative_to(root)
        )
    return known[instance]
