"""Folders of frames as known sources publish or record them, by name: `moge import rgbd-folder --preset NAME`.

A preset answers what its user does not say. Each was confirmed from the public source that it names; what could not be
confirmed is in `MISSING` and not guessed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moge_core.datasets.importers.calls import Call
from moge_core.datasets.importers.distortion import RADIAL_TANGENTIAL, Distortion
from moge_core.datasets.importers.intrinsics import parse_intrinsics
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.vocabulary import GivenValues
from moge_core.errors import InputError


@dataclass(frozen=True)
class Preset:
    """How a known source is laid out; what the user says goes before it.

    Attributes:
        layout: what lies in SOURCE.
        source: the public source that layout and scale were confirmed from.
        values: what stored values of depth mean.
        intrinsics: four numbers, a file or a pattern of files, as for `--intrinsics`.
        intrinsics_size: (width, height) that they refer to, where that may not be the images'.
        distortion: of the lens, where `intrinsics` are numbers.
        image_glob, depth_glob: which files are images and depth maps.
        folder_of_frame: whether each frame has a folder of its own, so that names need not agree.
        has_poses: whether poses that lie beside are those of the camera.
        label_type: loss set of the training configuration.
        wants: what a user must do or say besides.
        note: what every import by this preset tells.
    """

    layout: str
    source: str
    values: GivenValues = field(default_factory=GivenValues)
    intrinsics: str | None = None
    intrinsics_size: tuple[int, int] | None = None
    distortion: Distortion | None = None
    image_glob: str | None = None
    depth_glob: str | None = None
    folder_of_frame: bool = False
    has_poses: bool = True
    label_type: str | None = None
    wants: str = ""
    note: str = ""

    def camera(self) -> str | PixelIntrinsics | None:
        """The intrinsics, with the distortion where there is one."""
        if self.intrinsics is None or self.distortion is None:
            return self.intrinsics
        return replace(parse_intrinsics(self.intrinsics), distortion=self.distortion)

    def options(self) -> str:
        """What the preset sets, as options that could be typed instead; and what no option says, in words."""
        said = {
            "image_glob": self.image_glob,
            "depth_glob": self.depth_glob,
            "intrinsics": self.intrinsics,
            "intrinsics_size": self.intrinsics_size,
            **self.values.said(),
            "label_type": self.label_type,
        }
        line = Call("", "", "", {}).command(**{name: value for name, value in said.items() if value is not None}) or ""
        words = shlex.split(line)
        typed = shlex.join(["--depth-scale" if word == "--scale" else word for word in words[words.index("-o") + 2 :]])
        return typed + (f" (distortion {self.distortion})" if self.distortion is not None else "")


_MILLIMETRES = GivenValues(scale=1000)
_MILLIMETRES_OR_65535 = GivenValues(scale=1000, invalid=(65535.0,))
_PICTURES_IN_COLOR, _PICTURES_IN_RGB = "color/*.[jp][pn]g", "rgb/*.[jp][pn]g"

PRESETS: Mapping[str, Preset] = {
    "tum": Preset(
        "A sequence: rgb/, depth/, rgb.txt, depth.txt, groundtruth.txt. The camera is the one that its publisher"
        " recommends for all sequences.",
        "https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats",
        GivenValues(scale=5000),
        "525,525,319.5,239.5",
        (640, 480),
    ),
    "icl-nuim": Preset(
        "A sequence in TUM's format: rgb/, depth/.",
        "https://www.doc.ic.ac.uk/~ahanda/VaFRIC/codes.html",
        GivenValues(scale=5000),
        "481.2,-480,319.5,239.5",
        (640, 480),
    ),
    "nyu": Preset(
        "Frames of NYU v2 in millimetres, 640x480: rgb_00000.jpg, sync_depth_00000.png.",
        "https://github.com/YvanYin/Metric3D (data/nyu_demo)",
        _MILLIMETRES,
        "518.8579,519.46961,325.58245,253.73617",
        (640, 480),
    ),
    "3dmatch": Preset(
        "A scene or a sequence: camera-intrinsics.txt, *.color.png, *.depth.png, *.pose.txt.",
        "https://github.com/nvidia-isaac/nvblox (nvblox/tests/data/3dmatch)",
        _MILLIMETRES_OR_65535,
        "camera-intrinsics.txt",
        (640, 480),
    ),
    "replica": Preset(
        "Frames as NICE-SLAM rendered them: frame000000.jpg, depth000000.png, cam_params.json.",
        "https://github.com/cvg/nice-slam (configs/Replica)",
        GivenValues(scale=6553.5),
        "cam_params.json",
    ),
    "kitti-depth": Preset(
        "Images and depth maps of one camera. The whole benchmark is `moge import kitti`.",
        "https://github.com/TRI-ML/vidar (vidar/datasets/KITTIDataset.py)",
        GivenValues(scale=256),
        label_type="lidar",
        wants="--intrinsics of the drive's rectified camera, from calib_cam_to_cam.txt",
    ),
    "scannet": Preset(
        "A scene as SensReader exports it: color/, depth/, intrinsic/, pose/.",
        "https://github.com/ScanNet/ScanNet (SensReader)",
        _MILLIMETRES,
        "intrinsic/intrinsic_color.txt",
        image_glob="color/*.jpg",
        depth_glob="depth/*.png",
    ),
    "7scenes": Preset(
        "A scene or a sequence: frame-000000.color.png, frame-000000.depth.png, frame-000000.pose.txt.",
        "https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/",
        _MILLIMETRES_OR_65535,
        "585,585,320,240",
        (640, 480),
        image_glob="**/*.color.png",
        depth_glob="**/*.depth.png",
    ),
    "record3d": Preset(
        "A capture exported as EXR + RGB: rgb/, depth/*.exr, metadata.json.",
        "https://github.com/nerfstudio-project/nerfstudio (process_data/record3d_utils.py)",
        intrinsics="metadata.json",
        image_glob="rgb/*.[jp][pn]g",
        depth_glob="depth/*.exr",
    ),
    "polycam": Preset(
        "Raw data of a capture: keyframes/images/, keyframes/depth/, keyframes/cameras/.",
        "https://github.com/PolyCam/polyform (README)",
        _MILLIMETRES,
        "keyframes/cameras/*.json",
        image_glob="keyframes/images/*.jpg",
        depth_glob="keyframes/depth/*.png",
    ),
    "arkitscenes": Preset(
        "A video of 3dod or raw: lowres_wide/, lowres_depth/, lowres_wide_intrinsics/, lowres_wide.traj.",
        "https://github.com/apple/ARKitScenes (DATA.md)",
        _MILLIMETRES,
        "lowres_wide_intrinsics/*.pincam",
        image_glob="lowres_wide/*.png",
        depth_glob="lowres_depth/*.png",
    ),
    "sun-rgbd": Preset(
        "SUNRGBD/ or a part of it: a folder a frame, with image/, depth/ (as measured) and intrinsics.txt; for depth"
        " filled in by its publisher say --depth '**/depth_bfx/*.png'.",
        "https://rgbd.cs.princeton.edu (SUNRGBDtoolbox, read3dPoints.m)",
        GivenValues(scale=1000, encoding="rotated3"),
        "**/intrinsics.txt",
        image_glob="**/image/*.jpg",
        depth_glob="**/depth/*.png",
        folder_of_frame=True,
    ),
    "realsense": Preset(
        "What Open3D's recorder writes: color/, depth/ aligned to it, camera_intrinsic.json.",
        "https://github.com/isl-org/Open3D (realsense_recorder.py), https://github.com/realsenseai/librealsense"
        " (pull request 8946, issue 8058)",
        _MILLIMETRES,
        "camera_intrinsic.json",
        image_glob=_PICTURES_IN_COLOR,
        depth_glob="depth/*.png",
        wants="--depth-scale 10000 for a D405, 4000 for an L515, 8000 for an SR300",
        note="Depth was taken to be in millimetres, which is the default of RealSense D400 cameras; a D405 needs"
        " --depth-scale 10000, an L515 4000, an SR300 8000.",
    ),
    "azure-kinect": Preset(
        "What Open3D's azure_kinect_mkv_reader.py makes of a recording: color/, depth/ aligned to it, intrinsic.json.",
        "https://github.com/isl-org/Open3D (azure_kinect_mkv_reader.py),"
        " https://github.com/microsoft/Azure-Kinect-Sensor-SDK (k4atypes.h)",
        _MILLIMETRES,
        "intrinsic.json",
        image_glob=_PICTURES_IN_COLOR,
        depth_glob="depth/*.png",
        wants="the frames of an .mkv, by Open3D's azure_kinect_mkv_reader.py",
    ),
    "graspnet": Preset(
        "scenes/ or a part of it: of each scene and camera rgb/, depth/, camK.npy.",
        "https://github.com/graspnet/graspnetAPI (utils/utils.py)",
        _MILLIMETRES,
        "**/camK.npy",
        image_glob="**/rgb/*.png",
        depth_glob="**/depth/*.png",
    ),
    "eth3d-slam": Preset(
        "A sequence: rgb/, depth/, rgb.txt, depth.txt, calibration.txt, groundtruth.txt.",
        "https://github.com/ETH3D/badslam (rgbd_video_io_tum_dataset.h, bad_slam_config.h)",
        GivenValues(scale=5000),
        "calibration.txt",
    ),
    "bonn": Preset(
        "A sequence in TUM's format: rgb/, depth/, rgb.txt, depth.txt, groundtruth.txt.",
        "https://www.ipb.uni-bonn.de/data/rgbd-dynamic-dataset/",
        GivenValues(scale=5000),
        "542.822841,542.57687,315.59352,237.756098",
        (640, 480),
        Distortion(RADIAL_TANGENTIAL, (0.039903, -0.099343, -0.00073, -0.000144)),
        has_poses=False,
        note="groundtruth.txt of Bonn tells where markers were, not the camera; no poses were read.",
    ),
    "stray-scanner": Preset(
        "A recording: rgb/ (made of rgb.mp4), depth/, camera_matrix.csv, odometry.csv.",
        "https://github.com/strayrobots/scanner (docs/format.md), https://github.com/kekeblom/StrayVisualizer",
        _MILLIMETRES,
        "camera_matrix.csv",
        (1920, 1440),
        image_glob=_PICTURES_IN_RGB,
        depth_glob="depth/*.png",
        wants="the frames of the video: mkdir SOURCE/rgb && ffmpeg -noautorotate -i SOURCE/rgb.mp4 -fps_mode"
        " passthrough -q:v 1 -start_number 0 SOURCE/rgb/%06d.jpg",
    ),
    "3d-scanner-app": Preset(
        "All Data of a scan in low resolution mode: frame_00000.jpg, frame_00000.json, depth_00000.png.",
        "https://github.com/pwais/psegs (psegs/datasets/ios_lidar.py)",
        _MILLIMETRES,
        "frame_*.json",
        image_glob="frame_*.jpg",
        depth_glob="depth_*.png",
    ),
    "isaac": Preset(
        "What Replicator's BasicWriter writes: rgb_0000.png, distance_to_image_plane_0000.npy, camera_params_0000.json."
        " Where nothing is, it writes 0.",
        "https://docs.omniverse.nvidia.com/py/replicator/1.12.16/source/extensions/omni.replicator.core/docs/"
        "annotators_details.html",
        GivenValues(infinite=(0.0,)),
        "**/camera_params_*.json",
        image_glob="**/rgb_*.png",
        depth_glob="**/distance_to_image_plane_*.npy",
        label_type="synthetic",
        wants="the annotators rgb, distance_to_image_plane and camera_params; without the last, --intrinsics",
    ),
    "blenderproc": Preset(
        "What write_bop writes, or a part of it: of each scene rgb/, depth/, scene_camera.json. Depth that is clipped"
        " to 65535 is unknown.",
        "https://github.com/DLR-RM/BlenderProc (BopWriterUtility.py, RendererUtility.py)",
        GivenValues(invalid=(65535.0,)),
        "**/scene_camera.json",
        image_glob="**/rgb/*.[jp][pn]g",
        depth_glob="**/depth/*.png",
        label_type="synthetic",
        wants="--depth-scale: 1000 / depth_scale of scene_camera.json, 1000 by default, 10000 for 0.1. HDF5 files are"
        " for `moge import arrays SOURCE -o OUT --image-key colors --depth-key depth --infinite-from 1e9 --intrinsics"
        " fx,fy,cx,cy --label-type synthetic`",
    ),
    "kubric": Preset(
        "What write_image_dict writes: rgba_00000.png, depth_00000.tiff, metadata.json. Depth is the distance from the"
        " camera. Published MOVi sets are of TensorFlow Datasets: write their frames as these files first.",
        "https://github.com/google-research/kubric (renderer/blender_utils.py, file_io.py)",
        GivenValues(kind="ray", infinite_from=1e9),
        image_glob="**/rgba_*.png",
        depth_glob="**/depth_*.tiff",
        label_type="synthetic",
        wants="--intrinsics f,f,(W-1)/2,(H-1)/2 with f = W * focal_length / sensor_width of metadata.json",
    ),
    "vkitti2": Preset(
        "Virtual KITTI 2 or a part of it, rgb and depth unpacked into one folder: Scene*/*/frames/.",
        "https://github.com/facebookresearch/vggt (training/data/datasets/vkitti.py),"
        " https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/",
        GivenValues(scale=100, infinite=(65535.0,)),
        "725.0087,725.0087,620.5,187",
        (1242, 375),
        image_glob="**/frames/rgb/Camera_*/rgb_*.jpg",
        depth_glob="**/frames/depth/Camera_*/depth_*.png",
        label_type="synthetic",
    ),
}
"""Known sources by name."""

MISSING: Mapping[str, str] = {
    "RealSense Viewer": "the names of what its export of frames and rs-convert write, and a scale in them",
    "Azure Kinect without Open3D": "any layout: the SDK records .mkv only",
    "3D Scanner App, high resolution": "it writes no depth maps",
    "MOVi as published": "it has no folder layout, and a range of values for each video",
}
"""What has no preset, and what of it could not be confirmed or is not there."""


def preset_named(name: str | None) -> Preset | None:
    """The preset of this name; None where none was asked for.

    Raises:
        InputError: there is none.
    """
    if name is not None and name not in PRESETS:
        fix = "See `moge import presets` for what each sets."
        raise InputError("preset", f"must be one of {', '.join(PRESETS)}", found=repr(name), fix=fix)
    return None if name is None else PRESETS[name]
