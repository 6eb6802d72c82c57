"""Bringing a manifest up to date: which instances changed, reading these, and comparing all with each other.

Indexing does it for the instances that it found, the check before a training for those that a list names.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moge_core.datasets.layout import Finding, Progress
from moge_core.datasets.manifest import InstanceRecord, Manifest, comparison_key, save_manifest
from moge_core.datasets.parallel import parallel_map
from moge_core.datasets.validation import ValidationSettings, compare_instances, examine_instance, instance_stamp
from moge_core.datasets.validation.reprojection import check_reprojection

# What was read is written down so often, so that a killed run of hours loses a minute.
_SAVE_EVERY_S = 60.0

# Raised when more is compared: what is remembered of former comparisons is then made again.
_COMPARISON_VERSION = 2


def outdated(
    root: Path, manifest: Manifest, instances: Sequence[str], depth_name: str, settings: ValidationSettings
) -> list[str]:
    """The instances whose files are not those that the manifest knows, or were judged by other thresholds.

    Files are looked at, never opened.
    """
    known = manifest.column("stamp", depth_name) if manifest.notes.get("settings") == settings.digest() else {}
    base = f"{root}/"
    return [name for name in instances if known.get(name) != instance_stamp(base + name, depth_name)]


def read_anew(
    root: Path,
    manifest: Manifest,
    instances: Sequence[str],
    depth_name: str,
    settings: ValidationSettings,
    *,
    remember: bool = True,
    progress: Progress | None = None,
) -> None:
    """Read instances and put what they gave into the manifest, which is saved now and then, and when it is interrupted.

    Args:
        root: the dataset's resolved folder, locked unless nothing is to be saved.
        manifest: records of other thresholds than `settings` are forgotten.
        instances: what to read.
        depth_name: file name of the depth maps.
        settings: thresholds.
        remember: whether the manifest may be saved.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: `.moge/` cannot be written.
    """
    if manifest.notes.get("settings") != settings.digest():
        # Records of former thresholds go, those of other depth files too: they are read again when they are indexed.
        for path, other in list(manifest.keys()):
            manifest.drop(path, other)
        manifest.notes["settings"] = settings.digest()

    def read(instance: str) -> InstanceRecord:
        return examine_instance(root, instance, depth_name, settings=settings)

    saved_at = time.monotonic()
    try:
        for record in parallel_map(read, instances, progress):
            manifest.put(record)
            if remember and time.monotonic() - saved_at > _SAVE_EVERY_S:
                save_manifest(root, manifest)
                saved_at = time.monotonic()
    except BaseException:
        # What was read so far is not read again next time.
        if remember:
            save_manifest(root, manifest)
        raise


def contents_digest(instances: Sequence[str], manifest: Manifest, depth_name: str) -> str:
    """Digest of a list's names and of the contents of its instances, as far as the manifest knows these."""
    return digest_of(instances, manifest.column("fingerprint", depth_name))


def digest_of(instances: Sequence[str], fingerprints: Mapping[str, str]) -> str:
    """Digest of names and of the digests of their contents, as far as these are known."""
    digest = hashlib.sha256()
    for instance in instances:
        digest.update(f"{instance}\0{fingerprints.get(instance, '')}\n".encode())
    return digest.hexdigest()


def compare(
    root: Path,
    manifest: Manifest,
    instances: Sequence[str],
    index_name: str,
    depth_name: str,
    settings: ValidationSettings,
    *,
    digest: str,
    listed: str,
) -> list[Finding]:
    """Findings of comparing the instances; remembered, because comparing a million takes longer than finding no change.

    Instances are compared with those beside them, so the remembered ones hold as long as nothing changed anywhere.

    Args:
        root: the dataset's resolved folder.
        manifest: knows the instances, and remembers the comparison.
        instances: what is compared: that which a list names, and the broken ones that it leaves out.
        index_name: the list.
        depth_name: file name of the depth maps.
        settings: thresholds.
        digest: `contents_digest` of `instances`.
        listed: that of what the list names.
    """
    key = comparison_key(index_name, depth_name)
    basis = _basis(settings) | {"digest": digest}
    remembered = manifest.notes.get(key)
    if remembered is not None and basis.items() <= remembered.items():
        remembered["listed"] = listed
        return manifest.comparison(index_name, depth_name)
    records = manifest.select(instances, depth_name)
    found = compare_instances(records, settings) + check_reprojection(root, records, settings)
    manifest.notes[key] = {**basis, "listed": listed, "findings": [asdict(finding) for finding in found]}
    return found


def remembered_comparison(
    manifest: Manifest, index_name: str, depth_name: str, settings: ValidationSettings, listed: str
) -> list[Finding] | None:
    """What `compare` found for a list whose digest is `listed`, or None where it would have to compare anew."""
    remembered = manifest.notes.get(comparison_key(index_name, depth_name))
    if remembered is None or not (_basis(settings) | {"listed": listed}).items() <= remembered.items():
        return None
    return manifest.comparison(index_name, depth_name)


def _basis(settings: ValidationSettings) -> dict[str, Any]:
    return {"settings": settings.digest(), "version": _COMPARISON_VERSION}
