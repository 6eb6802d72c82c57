"""From a checkpoint back to what it was made of: run, configuration, data, imports, and the checkpoint before it.

    lineage = trace_lineage("workspace/finetune_v1/1", best=True, verify=True)
    for link in lineage.links: ...          # the checkpoint itself, then its parents up to the root
    lineage.problems                        # what is not as it was recorded

Reads manifests, workspaces and datasets; changes nothing, and imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from moge_core.configuration import MAX_CONFIG_BYTES
from moge_core.datasets.layout import Progress
from moge_core.errors import CheckpointError, MoGeError
from moge_core.io import file_digest
from moge_core.training.checkpoint_manifest import (
    CheckpointManifest,
    EarlierRecord,
    ParentRecord,
    is_file,
    manifest_path_of,
    read_checkpoint_manifest,
)
from moge_core.training.lineage_inputs import Configuration, DatasetLink, InputTracer
from moge_core.training.lineage_runs import Run, trace_run, workspace_of
from moge_core.training.lineage_targets import locate_checkpoint

_MAX_LINKS = 256
_MAX_MANIFESTS = 20_000

FileState = Literal["recorded", "verified", "differs", "unrecorded", "gone"]
"""Of a checkpoint's file: not read but of the recorded size; read and as recorded; another file or cut; without a
record; not there."""


@dataclass(frozen=True)
class Link:
    """One checkpoint of the chain.

    Attributes:
        path: the file.
        sha256: as recorded, by its own manifest or by the checkpoint that began with it; read where nobody recorded it
            and verification was asked for.
        state: see `FileState`.
        step: the last optimiser step in it, None where nobody tells.
        manifest_path: None for a checkpoint that comes without one; nothing more is known of it then.
        saved_at: when, ISO 8601 in UTC.
        versions: of Python and packages.
        seed, batch_size_total, held_out: what decides the order of the data, and the digest of what was held out.
        run: where and by whom it was trained.
        configuration: what it was trained with.
        datasets: what it was trained on.
        earlier: what it was trained on and with before a resume changed that.
        parent: the checkpoint that its training began with.
        moved_from: the recorded place, for a parent that was found elsewhere by its digest.
        problems: what is not as it was recorded.
    """

    path: Path
    sha256: str | None
    state: FileState
    step: int | None = None
    manifest_path: Path | None = None
    saved_at: str | None = None
    versions: dict[str, str] | None = None
    seed: int | None = None
    batch_size_total: int | None = None
    held_out: str | None = None
    run: Run | None = None
    configuration: Configuration | None = None
    datasets: tuple[DatasetLink, ...] = ()
    earlier: tuple[EarlierRecord, ...] = ()
    parent: ParentRecord | None = None
    moved_from: Path | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """A checkpoint and what it descends from.

    Attributes:
        links: the checkpoint, its parent, the parent's parent, ...
        end: why the chain ends there.
        verified: whether all files were read.
    """

    links: tuple[Link, ...]
    end: str
    verified: bool

    @property
    def problems(self) -> list[str]:
        """What is not as it was recorded, over the whole chain."""
        return [problem for link in self.links for problem in link.problems]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the problems."""
        values: dict[str, Any] = TypeAdapter(Lineage).dump_python(self, mode="json")
        return {**values, "problems": self.problems}


def trace_lineage(
    checkpoint: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    verify: bool = False,
    workspaces: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Lineage:
    """Follow a checkpoint back to its root.

    Args:
        checkpoint: a file of a checkpoint, a workspace, or the folder of an asset's numbered workspaces.
        step: which one of a workspace; by default its newest.
        best: the one of a workspace that scored best.
        verify: read the files of all checkpoints and all instances of all datasets, and compare their digests. Else
            sizes are compared, and datasets by what indexing last found.
        workspaces: further folders to look for parents in that are not where they were. Looked through in any case are
            the folders beside the workspace, and those beside the parent's recorded place.
        progress: called as `progress(done, total)` while the instances of a dataset are read.

    Raises:
        CheckpointError: there is no such checkpoint, or its manifest is damaged.
        WorkspaceError: the workspace has no such checkpoint.
    """
    tracer = _Tracer(verify, [Path(each) for each in workspaces], progress)
    return tracer.trace(locate_checkpoint(Path(checkpoint), step, best))


class _Tracer:
    def __init__(self, verify: bool, roots: Sequence[Path], progress: Progress | None) -> None:
        self._verify, self._roots = verify, roots
        self._inputs = InputTracer(verify, progress)
        self._digest_of = functools.cache(file_digest)

    def trace(self, path: Path) -> Lineage:
        links = [self._link(path, read_checkpoint_manifest(found) if (found := manifest_path_of(path)) else None)]
        seen = {path.resolve()}
        while len(links) < _MAX_LINKS:
            last = links[-1]
            if last.parent is None:
                return self._lineage(links, _why_it_ends(last))
            link, end = self._parent(last.parent, last)
            if link.path.resolve() in seen and end is None:
                problem = f"{last.path} names {link.path} as its parent, which descends from it: the records are false"
                links[-1] = replace(last, problems=(*last.problems, problem))
                return self._lineage(links, "the records go in a circle")
            links.append(link)
            seen.add(link.path.resolve())
            if end is not None:
                return self._lineage(links, end)
        return self._lineage(links, f"{_MAX_LINKS} generations, further ones are not followed")

    def _lineage(self, links: list[Link], end: str) -> Lineage:
        return Lineage(tuple(links), end, self._verify)

    def _link(self, path: Path, manifest: CheckpointManifest | None, recorded_sha256: str | None = None) -> Link:
        """What is known of the file at `path`, which exists.

        Args:
            path: the file.
            manifest: the one beside it.
            recorded_sha256: digest that the checkpoint which began with it recorded.
        """
        record = manifest.files.get(path.name) if manifest is not None else None
        sha256 = recorded_sha256 or (record.sha256 if record is not None else None)
        problems: list[str] = []
        state: FileState = "unrecorded" if sha256 is None else "recorded"
        if record is not None and path.stat().st_size != record.bytes:
            state = "differs"
            problems.append(f"{path} has {path.stat().st_size} bytes, {record.bytes} were recorded")
        elif self._verify:
            found = self._digest_of(path)
            if sha256 is not None:
                state = "verified" if found == sha256 else "differs"
            if state == "differs":
                problems.append(f"{path} has the SHA-256 {found}, {sha256} was recorded")
            sha256 = sha256 or found
        if manifest is None:
            return Link(path, sha256, state, problems=tuple(problems))

        workspace = workspace_of(path, manifest)
        configuration = self._inputs.configuration(manifest, workspace)
        datasets = tuple(self._inputs.dataset(each, manifest.config) for each in manifest.datasets)
        problems += [each.problem for each in (configuration, *datasets) if each is not None and each.problem]
        return Link(
            path,
            sha256,
            state,
            step=manifest.step,
            manifest_path=manifest_path_of(path),
            saved_at=manifest.time,
            versions=manifest.versions or ({"moge": manifest.code_version} if manifest.code_version else None),
            seed=manifest.seed,
            batch_size_total=manifest.batch_size_total,
            held_out=manifest.held_out,
            run=trace_run(workspace, manifest),
            configuration=configuration,
            datasets=datasets,
            earlier=tuple(manifest.earlier),
            parent=manifest.parent,
            problems=tuple(problems),
        )

    def _parent(self, parent: ParentRecord, child: Link) -> tuple[Link, str | None]:
        """The link of a parent, and why the chain ends with it, or None where it may go on."""
        recorded = Path(parent.path)
        manifest, damage = _manifest_beside(recorded) if is_file(recorded) else (None, None)
        if is_file(recorded) and damage is None and self._is_this(recorded, manifest, parent.sha256):
            return self._link(recorded, manifest, parent.sha256), None
        moved = self._find(parent.sha256, recorded, child)
        if moved is not None:
            link = self._link(moved, _manifest_beside(moved)[0], parent.sha256)
            return replace(link, moved_from=recorded), None
        state: FileState = "recorded"
        if damage is not None:
            problem, end = damage, "the manifest of this parent cannot be read"
        elif is_file(recorded):
            problem = f"{recorded} is not the parent that was recorded, whose SHA-256 is {parent.sha256}"
            end, state = "another file stands where this parent was", "differs"
        else:
            problem = f"{recorded} is gone; its SHA-256 was {parent.sha256}"
            end, state = "this parent is gone", "gone"
        link = Link(recorded, parent.sha256, state, step=parent.step, problems=(problem,))
        return link, end

    def _is_this(self, path: Path, manifest: CheckpointManifest | None, sha256: str) -> bool:
        """Whether a file is the recorded parent, as its manifest says, or, where that says nothing, its contents."""
        record = manifest.files.get(path.name) if manifest is not None else None
        if record is not None:
            return record.sha256 == sha256
        return not self._verify or self._digest_of(path) == sha256

    def _find(self, sha256: str, recorded: Path, child: Link) -> Path | None:
        """A file with this digest in the workspaces around."""
        places = [*self._roots, *_folders_beside(child.path), *_folders_beside(recorded)]
        if child.run is not None and child.run.workspace is not None:
            places += _folders_beside(child.run.workspace / "checkpoint" / "any.pt")
        for number, path in enumerate(_manifests_in(places)):
            if number >= _MAX_MANIFESTS:
                break
            found = _file_with(sha256, path)
            if found is not None:
                return found
        return None


def _why_it_ends(link: Link) -> str:
    if link.manifest_path is None:
        return "no manifest lies beside it: a published checkpoint, or one that was copied without its manifest"
    init = link.run.init if link.run is not None else None
    return "its training began anew" + (f", with --init {init}" if init else "")


def _manifest_beside(path: Path) -> tuple[CheckpointManifest | None, str | None]:
    """The manifest of a parent, and what is wrong with it; a damaged one must not hide what is known of the child."""
    found = manifest_path_of(path)
    if found is None:
        return None, None
    try:
        return read_checkpoint_manifest(found), None
    except CheckpointError as error:
        return None, str(error)


def _folders_beside(checkpoint: Path) -> list[Path]:
    """Folders that hold the workspaces beside that of a checkpoint."""
    workspace = checkpoint.absolute().parent.parent
    if workspace.name == "set_aside":
        workspace = workspace.parent
    beside = [workspace.parent]
    # The pipeline numbers the workspaces of an asset: those of other assets lie one folder further up.
    return [*beside, workspace.parent.parent] if workspace.name.isdigit() else beside


def _manifests_in(places: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for place in places:
        for depth in ("", "*/", "*/*/"):
            for folder in ("checkpoint", "set_aside/*"):
                try:
                    found = sorted(place.glob(f"{depth}{folder}/*.json"))
                except (OSError, ValueError):
                    continue
                yield from (path for path in found if path not in seen)
                seen.update(found)


def _file_with(sha256: str, manifest_path: Path) -> Path | None:
    """The file with this digest beside a manifest that names it."""
    try:
        if not manifest_path.is_file() or manifest_path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        # Few manifests name the digest, so that hardly any has to be understood.
        if sha256.encode() not in manifest_path.read_bytes():
            return None
        manifest = read_checkpoint_manifest(manifest_path)
    except (OSError, MoGeError):
        return None
    names = [name for name, record in manifest.files.items() if record.sha256 == sha256]
    return next((path for name in names if is_file(path := manifest_path.with_name(name))), None)
