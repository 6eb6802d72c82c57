"""What a file is that is not what it should be, by its first bytes, and what people do about it.

Most files that cannot be read are no damaged pictures: a repository was cloned without its large files, a download
ended in a login page, an archive was not unpacked, a phone wrote HEIC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 512
"""So many bytes tell what a file is."""


@dataclass(frozen=True)
class Foreign:
    """What a file is.

    Attributes:
        kind: `absent` is something in the place of data, `packed` has data in it, `picture` can be read as one,
            `array` holds numbers, `other` must be converted.
        found: with its article.
        fix: what to do about it.
    """

    kind: Literal["absent", "packed", "picture", "array", "other"]
    found: str
    fix: str


_AGAIN = "Copy or download it again."
_PICTURE = "Convert it to JPEG or PNG."
_UNPACK = "Unpack it, and give what was in it."

# Each pattern is looked for at the first byte.
_KINDS: tuple[tuple[re.Pattern[bytes], Foreign], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), foreign)
    for pattern, foreign in (
        (rb"\Z", Foreign("absent", "an empty file", _AGAIN)),
        (rb"\0+\Z", Foreign("absent", "nothing but zero bytes, as of a copy that broke off", _AGAIN)),
        (
            rb"version https://git-lfs",
            Foreign(
                "absent",
                "a pointer of Git LFS, not the file itself",
                "Fetch the files: `git lfs pull` in their repository.",
            ),
        ),
        (
            rb"(\.\./)*(\.git)?/?annex/objects/",
            Foreign(
                "absent",
                "a pointer of git-annex, not the file itself",
                "Fetch the files: `git annex get .` in their repository.",
            ),
        ),
        (
            rb"(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<(!doctype )?html)",
            Foreign(
                "absent", "a web page", "Download the file again; the server answered with a page, such as a login."
            ),
        ),
        (
            rb"(\xef\xbb\xbf)?\s*<\?xml[^>]*>\s*<error",
            Foreign("absent", "an error message of a server", "Download the file again; the server refused it."),
        ),
        (rb"PK\x03\x04|PK\x05\x06", Foreign("packed", "a ZIP archive", _UNPACK)),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", Foreign("packed", "a compressed file", _UNPACK)),
        (rb"7z\xbc\xaf|Rar!|.{257}ustar", Foreign("packed", "an archive", _UNPACK)),
        (rb"\x93NUMPY", Foreign("array", "an array of NumPy", "Arrays are imported: `moge import table` names them.")),
        (rb"\x89HDF\r\n", Foreign("array", "an HDF5 file", "Arrays are imported: `moge import arrays`.")),
        (rb"v/1\x01", Foreign("array", "an OpenEXR file", _PICTURE)),
        (rb"Pf\s|PF\s", Foreign("array", "a portable float map", _PICTURE)),
        (rb"MATLAB 5\.0", Foreign("array", "a MATLAB file", "Save its arrays as NPY, HDF5 or PNG.")),
        (rb"\x89PNG\r\n", Foreign("picture", "a PNG picture", _PICTURE)),
        (rb"\xff\xd8\xff", Foreign("picture", "a JPEG picture", _PICTURE)),
        (rb"RIFF....WEBP", Foreign("picture", "a WebP picture", _PICTURE)),
        (rb"GIF8", Foreign("other", "a GIF picture", _PICTURE)),
        (
            rb"....ftyp(hei|hev|mif1|msf1)",
            Foreign(
                "other", "a HEIC picture, as phones write them", "Convert it to JPEG: `heif-convert IN.heic OUT.jpg`."
            ),
        ),
        (rb"....ftypavi", Foreign("other", "an AVIF picture", _PICTURE)),
        (
            rb"....ftypcrx|(II\*\0|MM\0\*)....CR|FUJIFILM|II(RO|RS|U\0)|MRM",
            Foreign("other", "a camera's raw file", "Develop it to JPEG or PNG."),
        ),
        (
            rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
            Foreign("other", "a video", "Extract its frames, for example by ffmpeg."),
        ),
        (rb"II\*\0|MM\0\*", Foreign("other", "a TIFF or a camera's raw file", _PICTURE)),
        (rb"%PDF", Foreign("other", "a PDF", _PICTURE)),
    )
)


def recognised(head: bytes) -> Foreign | None:
    """What a file is whose first bytes these are; None where they say nothing.

    Args:
        head: the file, or at least its first `HEAD_BYTES`.
    """
    return next((foreign for pattern, foreign in _KINDS if pattern.match(head[:HEAD_BYTES])), None)


def described_head(head: bytes) -> tuple[str, str | None]:
    """What a file is by its first bytes, for `found`, and what to do about it, for `fix`."""
    foreign = recognised(head)
    return (f"a file that begins with {head[:8]!r}", None) if foreign is None else (foreign.found, foreign.fix)
