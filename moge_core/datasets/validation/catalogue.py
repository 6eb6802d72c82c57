"""Every rule of a dataset by its id: what must hold, how grave it is, which pass sees it, and what to do.

The ids are stable: programs that read `moge validate --json` go by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Pass = Literal["list", "cheap", "full", "dataset"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: stable name.
        severity: `error` where an instance cannot be trained on, `warning` where it can and should be looked at.
        seen_by: the pass that sees it: the `list` itself, `cheap` (headers and meta.json), `full` (decoding), or
            `dataset` (comparing instances with each other).
        promise: the sentence that must hold.
        fault: how it is usually broken, in plain words.
        fix: what to do.
    """

    id: str
    severity: Severity
    seen_by: Pass
    promise: str
    fault: str
    fix: str


_CATALOGUE = (
    Rule(
        "list-entry",
        "error",
        "list",
        "each line of a list is an instance's path inside the dataset",
        "a blank line, an absolute path, `..`, backslashes, or a link that leads out",
        "Write one path a line, relative to the dataset's folder, with `/` between folders.",
    ),
    Rule(
        "listed-once",
        "warning",
        "list",
        "a list names each instance once",
        "the same line twice: the instance is drawn more often",
        "Delete the extra lines unless this is meant.",
    ),
    Rule(
        "not-quarantined",
        "warning",
        "list",
        "a list names no instance that is in quarantine",
        "an instance was put aside, and a list made by hand still names it",
        "Delete the line, or release the instance with `moge quarantine --release`.",
    ),
    Rule(
        "files-present",
        "error",
        "cheap",
        "image, depth map and meta.json are there",
        "a file is missing, or the depth map has another name",
        "Add what is missing, or remove the instance.",
    ),
    Rule(
        "files-known",
        "warning",
        "cheap",
        "an instance's folder holds only files that training knows",
        "files of other tools, temporary files, other spellings such as image.jpeg",
        "Move them elsewhere, or rename what is meant to be read.",
    ),
    Rule(
        "inside-root",
        "error",
        "cheap",
        "no link leads out of the dataset",
        "a link to a file or folder elsewhere",
        "Copy the data into the dataset.",
    ),
    Rule(
        "listable-path",
        "error",
        "cheap",
        "the instance's path fits on one line of a list",
        "line breaks, backslashes or bytes that are no UTF-8 in a folder's name",
        "Rename the folder.",
    ),
    Rule(
        "folder-readable",
        "error",
        "cheap",
        "folders can be opened",
        "missing rights",
        "Give this user the right to read the folder.",
    ),
    Rule(
        "files-readable",
        "error",
        "cheap",
        "files can be opened and read",
        "missing rights, a failing disk, files that no reader copes with",
        "Give this user the right to read the files, or copy them again.",
    ),
    Rule(
        "meta-readable",
        "error",
        "cheap",
        "meta.json is a JSON object with a 3x3 matrix `intrinsics` of finite numbers",
        "damaged JSON, NaN, no `intrinsics`, a huge file",
        'Write {"intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]} with values relative to the image size.',
    ),
    Rule(
        "intrinsics-normalised",
        "error",
        "cheap",
        "focal lengths and principal point are relative to the image size",
        "intrinsics in pixels",
        "Divide by the image size: fx / W, fy / H, (cx + 0.5) / W, (cy + 0.5) / H.",
    ),
    Rule(
        "intrinsics-row-major",
        "error",
        "cheap",
        "the principal point stands in the last column, below the diagonal is 0, and the last row is 0 0 1",
        "a matrix written column by column (transposed), or with rounding errors where 0 and 1 belong",
        "Transpose it, or write exact zeros and ones.",
    ),
    Rule(
        "focal-positive",
        "error",
        "cheap",
        "focal lengths are positive",
        "a negative fy, of image axes that point up",
        "Flip the image and depth instead, or take its absolute value.",
    ),
    Rule(
        "principal-point-inside",
        "error",
        "cheap",
        "the principal point is inside the image",
        "intrinsics of another resolution, or of the image before cropping",
        "Give the intrinsics of this image, after cropping and resizing.",
    ),
    Rule(
        "intrinsics-of-this-size",
        "warning",
        "cheap",
        "the intrinsics refer to an image of this size",
        "both coordinates of the principal point are the same share off the centre, as of another resolution",
        "Check which resolution the intrinsics refer to, and divide by that.",
    ),
    Rule(
        "pixels-square",
        "warning",
        "cheap",
        "pixels are square: fx W and fy H are equal",
        "divided by the sides of another shape, swapped width and height, or stretched images",
        "Divide fx by the width and fy by the height of the image that they refer to.",
    ),
    Rule(
        "fov-plausible",
        "warning",
        "cheap",
        "the field of view is that of a camera",
        "intrinsics that were divided twice, or not by the right size",
        "Divide focal lengths in pixels by the image size, once.",
    ),
    Rule(
        "sizes-agree",
        "error",
        "cheap",
        "image, depth map, and normals, mask and segmentation where there are any, have one size",
        "one of them was resized or rotated",
        "Bring them to one size; resize depth by nearest neighbour only.",
    ),
    Rule(
        "image-decodable",
        "error",
        "full",
        "the image can be decoded",
        "truncated, damaged, no image, or of a hostile size",
        "Convert or export the file again.",
    ),
    Rule(
        "depth-decodable",
        "error",
        "full",
        "the depth map can be decoded",
        "truncated, damaged, impossible near or far, or of a hostile size",
        "Convert or export the file again.",
    ),
    Rule(
        "depth-16-bit",
        "error",
        "full",
        "the depth map is a 16-bit grey PNG",
        "a picture of depth: 8 bits, or colours",
        "Use the file that the picture was made from.",
    ),
    Rule(
        "depth-has-range",
        "error",
        "full",
        "the depth map says what its codes mean: text fields near and far",
        "a sensor's linear 16-bit PNG, copied as it is",
        "Import it: `moge import rgbd-folder`.",
    ),
    Rule(
        "maps-decodable",
        "error",
        "full",
        "normals, mask and segmentation, where there are any, are whole PNG files of their kind",
        "truncated, damaged, or 8-bit pictures of normals",
        "Export them again, or delete them: training can do without.",
    ),
    Rule(
        "image-varies",
        "warning",
        "full",
        "the image shows something, down to its last row",
        "black, white or one colour; grey from some row on, as decoders fill up a truncated JPEG",
        "Export the frame again, or quarantine it.",
    ),
    Rule(
        "depth-known",
        "error",
        "full",
        "at least one pixel has a finite depth",
        "all unknown or all sky: a wrong scale or wrong invalid values in an import",
        "Import again with the right --scale and --invalid, or remove the instance.",
    ),
    Rule(
        "depth-mostly-known",
        "warning",
        "full",
        "enough pixels have a depth",
        "a failed scan, a wrong mask, a wrong maximum depth",
        "Check --invalid, --max-depth and the masks of the import, or quarantine the instance.",
    ),
    Rule(
        "depth-varies",
        "error",
        "full",
        "depth is not one constant",
        "a map that was filled in, or a failed export",
        "Export the depth again, or quarantine the instance.",
    ),
    Rule(
        "depth-unsaturated",
        "warning",
        "full",
        "depth does not end in a wall of its greatest value",
        "values beyond a sensor's or format's limit were clipped to it",
        "Import again with a --max-depth below the limit: what is clipped becomes unknown.",
    ),
    Rule(
        "sky-infinite",
        "warning",
        "full",
        "what is infinitely far is +Inf",
        "sky stored as a huge number or as the greatest value",
        "Import again with --infinite and the stored value, or with --infinite-from and metres.",
    ),
    Rule(
        "infinity-is-sky",
        "warning",
        "full",
        "what is infinitely far is sky: open to the upper border and above the horizon",
        "+Inf of a sensor for no return: holes, specks, stripes, walls beyond its range",
        "Import again with --invalid inf (or with the value that --infinite named): what did not return is unknown.",
    ),
    Rule(
        "marker-not-depth",
        "warning",
        "full",
        "a sensor's marker of the unknown is no depth",
        "65535 (or its depth, such as 65.535 m) stored as depth",
        "Import again with --invalid 65535.",
    ),
    Rule(
        "depth-bits-in-order",
        "warning",
        "full",
        "stored integers are numbers",
        "SUN RGB-D's integers, whose bits are turned by three places: eight times too large, and wrapped beyond 8 m",
        "Import again with --encoding rotated3.",
    ),
    Rule(
        "depth-not-float16-bits",
        "warning",
        "full",
        "stored integers are numbers, not the bits of others",
        "float16 written into a 16-bit PNG bit by bit, read as millimetres",
        "Import again with --encoding float16 --scale 1.",
    ),
    Rule(
        "depth-levels",
        "warning",
        "full",
        "depth was measured in more than 256 steps",
        "the source had 8 bits",
        "Use a source with 16 bits or floats.",
    ),
    Rule(
        "depth-steps",
        "warning",
        "full",
        "steps of depth are fine",
        "rounded to metres or decimetres, or scaled from 8 bits",
        "Use the depth before rounding.",
    ),
    Rule(
        "depth-not-disparity",
        "warning",
        "full",
        "depth is z, not its inverse",
        "disparity (or inverse depth) stored as depth: planes are bent",
        "Import again with --kind disparity, or with --kind inverse where it is 1/depth.",
    ),
    Rule(
        "depth-not-inverted",
        "warning",
        "full",
        "near is small and far is large",
        "maximum minus depth was stored, as in pictures where near is bright",
        "Import the depth itself, not a picture in which near is bright.",
    ),
    Rule(
        "depth-along-axis",
        "warning",
        "full",
        "depth is z along the optical axis, not the length of the viewing ray",
        "Euclidean distances stored as z (Hypersim, ray casters): planes are bowls",
        "Import again with --kind ray.",
    ),
    Rule(
        "registered",
        "warning",
        "full",
        "edges of depth lie on edges of the image (a suspicion, not a verdict)",
        "the depth camera's own view (raw Kinect, raw NYU), shifted crops, or the depth of another frame",
        "Use depth registered to the colour camera; look at the overlay in the quality report.",
    ),
    Rule(
        "unit-plausible",
        "warning",
        "full",
        "metric depth is as large as scenes are",
        "a scale off by 1000 (millimetres as metres) or by 5 (5000 read as 1000), or relative depth marked metric",
        "Import again with the right --scale (stored units a metre), or with --depth-unit none where nobody knows it.",
    ),
    Rule(
        "density-fits-label",
        "warning",
        "full",
        "depth is as dense as its label type needs",
        "sparse LiDAR labelled as synthetic: losses of local geometry starve",
        "Choose the label type by density: synthetic for exact dense depth, sfm for semi-dense, lidar for sparse.",
    ),
    Rule(
        "not-duplicated",
        "warning",
        "dataset",
        "an image is in the dataset once",
        "a copied folder, or frames of a standing camera",
        "Remove or quarantine the copies.",
    ),
    Rule(
        "unit-consistent",
        "warning",
        "dataset",
        "instances agree on the unit of depth",
        "a part was imported with another scale",
        "Import that part again with the --scale of the others.",
    ),
    Rule(
        "intrinsics-consistent",
        "warning",
        "dataset",
        "images of one scene and size share their focal length",
        "the intrinsics of another camera or resolution",
        "Check the intrinsics of this instance, and --intrinsics-size where they refer to another resolution.",
    ),
    Rule(
        "density-consistent",
        "warning",
        "dataset",
        "instances know about as many pixels as the others of the dataset",
        "a failed scan among good ones",
        "Check the instance, or quarantine it.",
    ),
    Rule(
        "reprojects",
        "warning",
        "dataset",
        "where meta.json has poses, the points of one frame lie on the depth of its neighbour",
        "ray lengths stored as z, a wrong scale or focal length, poses of another convention",
        "Check --kind and --scale of the depth, the --intrinsics, and that `pose` is camera-to-world in OpenCV axes.",
    ),
    Rule(
        "normals-fit-depth",
        "warning",
        "full",
        "normals are those of the depth's surfaces: in OpenCV's camera axes, towards the camera, of this frame",
        "axes of OpenGL or of the world, normals that look away, vectors left in a range of 0 to 1, another frame",
        "Pair each normal map with its frame, or import again with --normal-axes none.",
    ),
    Rule(
        "mask-fits-depth",
        "warning",
        "full",
        "a mask is true where depth can be trusted, and of this frame",
        "true and false the other way round, a mask of another frame or shifted",
        "Pair each mask with its frame, or delete mask.png: training can do without.",
    ),
    Rule(
        "segmentation-fits",
        "warning",
        "full",
        "borders of a segmentation lie on edges of image and depth",
        "the segmentation of another frame, or shifted",
        "Pair each segmentation with its frame, or delete segmentation.png: training can do without.",
    ),
)

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _CATALOGUE}
"""Every rule by its id."""
