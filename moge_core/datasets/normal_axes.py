"""Axes of normal maps: how people name them, and how vectors in them become vectors in OpenCV's camera axes.

Axes are told by three letters that say where x, y and z point: R or L (right, left), D or U (down, up), F or B
(forward, backward), each pair once. OpenCV's camera is RDF, OpenGL's and Blender's RUB. The 48 codes are all ways in
which axes can be named and mirrored; normals that look away from the camera are in the code with every letter opposite.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moge_core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NO_NORMALS = "none"
"""What is said in place of axes to leave normal maps out."""
WORLD = "world"
NAMED: Mapping[str, str] = {"opencv": "RDF", "opengl": "RUB"}
"""Codes that have a name."""
WORDS = ("opencv", "opengl", WORLD, f"{WORLD}-opengl")
"""What is usual; any code, and `world-` before any code, may be said as well."""

USUAL = ("RDF", "RUB", "LUB", "LDF", "RUF", "LUF", "RDB", "LDB")
"""Codes of cameras whose axes are along the picture's, the most usual first."""

# Where each letter points, in OpenCV's axes.
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1), "B": (0, 0, -1)}
_WORDS_OF_LETTERS = {"R": "right", "L": "left", "D": "down", "U": "up", "F": "forward", "B": "backward"}
_OPPOSITE = {"R": "L", "L": "R", "D": "U", "U": "D", "F": "B", "B": "F"}


@dataclass(frozen=True)
class NormalAxes:
    """Axes of normal maps.

    Attributes:
        code: three letters, see above.
        is_of_world: whether they are the world's, which has the axes that poses lead to; RDF are these as they are.
    """

    code: str
    is_of_world: bool = False

    @classmethod
    def of(cls, text: str) -> NormalAxes:
        """From a name or a code, with `world-` before those of the world.

        Raises:
            InputError: neither.
        """
        words = text.strip().lower()
        is_of_world = words == WORLD or words.startswith(f"{WORLD}-")
        words = words.removeprefix(WORLD).removeprefix("-") or "opencv" if is_of_world else words
        code = NAMED.get(words, words.upper())
        if code not in CODES:
            rule = f"must be one of {', '.join(WORDS)}, or where x, y and z point, such as RUF (right, up, forward)"
            raise InputError("normal_axes", rule, found=repr(text))
        return cls(code, is_of_world)

    @property
    def name(self) -> str:
        """As an option says it."""
        short = next((name for name, code in NAMED.items() if code == self.code), self.code)
        if not self.is_of_world:
            return short
        return WORLD if short == "opencv" else f"{WORLD}-{short}"

    def described(self) -> str:
        """In words."""
        words = ", ".join(f"{axis} {_WORDS_OF_LETTERS[letter]}" for axis, letter in zip("xyz", self.code, strict=True))
        if self.is_of_world:
            words = "those of the world" if self.code == "RDF" else f"those of the world with {words}"
        away = {opposite_of(code): name for name, code in NAMED.items()}.get(self.code)
        return words if away is None or self.is_of_world else f"{words}; {away}'s, looking away from the camera"

    def to_camera(self, pose: Sequence[float] | None = None) -> npt.NDArray[np.float64]:
        """The matrix (3, 3) that leads from these axes to OpenCV's of the camera.

        Args:
            pose: 16 numbers, camera-to-world in OpenCV axes, row by row; needed for axes of the world.

        Raises:
            InputError: axes of the world without a pose.
        """
        matrix = matrix_of(self.code)
        if not self.is_of_world:
            return matrix.T
        if pose is None:
            raise InputError("normal_axes", "of the world need the pose of each frame", found="a frame without a pose")
        return rotation_of(pose).T @ matrix.T


CODES: tuple[str, ...] = tuple(
    "".join(letters)
    for letters in itertools.product("RDFLUB", repeat=3)
    if len({frozenset((letter, _OPPOSITE[letter])) for letter in letters}) == 3
)
"""All 48."""

OPENCV = NormalAxes("RDF")
"""Axes of normal maps in this format."""


def matrix_of(code: str) -> npt.NDArray[np.float64]:
    """(3, 3) that leads from OpenCV's axes to those of a code: a signed permutation."""
    import numpy as np

    return np.array([_DIRECTIONS[letter] for letter in code], np.float64)


def opposite_of(code: str) -> str:
    """The code whose vectors are the negative of this one's."""
    return "".join(_OPPOSITE[letter] for letter in code)


def rotation_of(pose: Sequence[float]) -> npt.NDArray[np.float64]:
    """Rotation (3, 3), or reflection of left-handed worlds, of a pose of 16 numbers, without its scale."""
    import numpy as np

    left, _, right = np.linalg.svd(np.asarray(pose, np.float64).reshape(4, 4)[:3, :3])
    rotation: npt.NDArray[np.float64] = left @ right
    return rotation
