"""Small drives in the published layouts, made from what a camera should see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moge_core.io import write_image

Array = np.ndarray[Any, Any]

W, H = 60, 40
K = np.array([[50.0, 0, 28.5], [0, 52.0, 19.5], [0, 0, 1]])


def turn(axis: Sequence[float], degrees: float) -> Array:
    """Rotation matrix (3, 3) by Rodrigues' formula."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def quaternion(axis: Sequence[float], degrees: float) -> list[float]:
    """The same rotation as w, x, y, z."""
    half = np.radians(degrees) / 2
    return [float(np.cos(half)), *(np.asarray(axis) / np.linalg.norm(axis) * np.sin(half)).tolist()]


def rigid(rotation: Array, shift: Sequence[float]) -> Array:
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rotation, shift
    return moved


def apply(motion: Array, points: Array) -> Array:
    return points @ motion[:3, :3].T + motion[:3, 3]


def seen_points(seed: int, num: int = 400) -> tuple[Array, Array]:
    """Points (N, 3) in camera axes, one in the middle of each of N pixels, and the depth map (H, W) that they make.

    Their depths differ by less than a tenth, so that none hides another.
    """
    rng = np.random.default_rng(seed)
    pixel = rng.choice(W * H, num, replace=False)
    z = rng.uniform(10, 10.8, num)
    u, v = pixel % W, pixel // W
    points = np.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], axis=-1)
    depth = np.full(W * H, np.nan)
    depth[pixel] = z
    return points, depth.reshape(H, W)


class Box(NamedTuple):
    """The front of a box that faces the camera: its middle, half its width and height, and its depth."""

    x: float
    y: float
    half_width: float
    half_height: float
    z: float

    def covers(self, points: Array) -> Array:
        """Which points (N, 3) have the front between themselves and the origin, or are on it."""
        at_front = points * (self.z / points[:, 2:])
        within = (np.abs(at_front[:, 0] - self.x) <= self.half_width) & (
            np.abs(at_front[:, 1] - self.y) <= self.half_height
        )
        covered: Array = within & (points[:, 2] > self.z * (1 + 1e-9))
        return covered


def measure(sensor: Array, boxes: Sequence[Box], wall: float, spacing_deg: float = 0.25) -> tuple[Array, Array]:
    """Returns (N, 3) that a LiDAR at `sensor` has of boxes and a wall at z = `wall`, and the number (N,) of the
    box that each is on, -1 for the wall. Scan lines are twice as far apart as the returns on them."""
    across, down = np.meshgrid(np.arange(-40, 40, spacing_deg), np.arange(-20, 20, 2 * spacing_deg))
    rays = np.stack([np.tan(np.radians(across)), np.tan(np.radians(down)), np.ones_like(across)], -1).reshape(-1, 3)
    far = np.full(len(rays), wall - sensor[2])
    number = np.full(len(rays), -1)
    for i, box in enumerate(boxes):
        x, y, _ = (sensor + rays * (box.z - sensor[2])).T
        hit = (np.abs(x - box.x) < box.half_width) & (np.abs(y - box.y) < box.half_height) & (box.z - sensor[2] < far)
        far[hit], number[hit] = box.z - sensor[2], i
    return sensor + rays * far[:, None], number


def write_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 255, (H, W, 3), dtype=np.uint8))


def write_rows(path: Path, points: Array, num_columns: int) -> None:
    """A sweep as headerless 32-bit floats, its columns after x y z filled with ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.ones((len(points), num_columns), "<f4")
    rows[:, :3] = points
    path.write_bytes(rows.tobytes())


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def numbers(values: Array) -> str:
    return " ".join(f"{value:.12e}" for value in np.asarray(values).ravel())


# Velodyne axes are x forward, y left, z up.
TO_CAMERA_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
KITTI_RECTIFY = turn([1, 2, 3], 1.5)
KITTI_VELODYNE = rigid(turn([3, 1, 2], 0.8) @ TO_CAMERA_AXES, [0.02, -0.07, -0.3])
KITTI_SHIFT = {2: np.array([0.06, -0.001, 0.003]), 3: np.array([-0.47, 0.002, 0.003])}


def kitti_projection(camera: int) -> Array:
    return np.hstack([K, (K @ KITTI_SHIFT[camera])[:, None]])


def kitti_sweep(points: Array, camera: int) -> Array:
    """Where the velodyne measures points that are given in a camera's axes."""
    in_camera_0 = (points - KITTI_SHIFT[camera]) @ KITTI_RECTIFY
    return apply(np.linalg.inv(KITTI_VELODYNE), in_camera_0)


def write_kitti_object(root: Path, names: Sequence[str]) -> dict[str, Array]:
    """training/ with image_2; the depth map of each frame."""
    depths = {}
    for seed, name in enumerate(names):
        points, depths[name] = seen_points(seed)
        write_photo(root / "training" / "image_2" / f"{name}.png", seed)
        write_rows(root / "training" / "velodyne" / f"{name}.bin", kitti_sweep(points, 2), 4)
        path = root / "training" / "calib" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        lines = [f"P{camera}: {numbers(kitti_projection(camera))}" for camera in (2, 3)]
        lines += [f"R0_rect: {numbers(KITTI_RECTIFY)}", f"Tr_velo_to_cam: {numbers(KITTI_VELODYNE[:3])}", ""]
        path.write_text("\n".join(lines))
    return depths


def write_kitti_calibration(day: Path) -> None:
    day.mkdir(parents=True, exist_ok=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", f"R_rect_00: {numbers(KITTI_RECTIFY)}"]
    for camera in (2, 3):
        # Rectification of the other cameras is in their projection; their own R_rect and K are of the raw pictures.
        lines += [f"S_rect_0{camera}: {W} {H}", f"K_0{camera}: {numbers(2 * K)}"]
        lines += [f"R_rect_0{camera}: {numbers(turn([0, 1, 0], 5))}"]
        lines += [f"P_rect_0{camera}: {numbers(kitti_projection(camera))}"]
    (day / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    lines = ["calib_time: 15-Mar-2012", f"R: {numbers(KITTI_VELODYNE[:3, :3])}", f"T: {numbers(KITTI_VELODYNE[:3, 3])}"]
    (day / "calib_velo_to_cam.txt").write_text("\n".join(lines))


DRIVE = "2011_09_26_drive_0001_sync"


def write_kitti_raw(root: Path, camera: int, frames: Sequence[str]) -> dict[str, Array]:
    """A drive whose sweeps are what one camera sees; the depth map of each frame."""
    drive = root / "2011_09_26" / DRIVE
    write_kitti_calibration(root / "2011_09_26")
    depths = {}
    for seed, frame in enumerate(frames):
        points, depths[frame] = seen_points(seed)
        write_rows(drive / "velodyne_points" / "data" / f"{frame}.bin", kitti_sweep(points, camera), 4)
        for other in (2, 3):
            write_photo(drive / f"image_0{other}" / "data" / f"{frame}.png", seed)
    return depths


def pose_json(axis: Sequence[float], degrees: float, place: Sequence[float]) -> dict[str, dict[str, float]]:
    rotation = dict(zip(("qw", "qx", "qy", "qz"), quaternion(axis, degrees), strict=True))
    return {"rotation": rotation, "translation": dict(zip("xyz", place, strict=True))}


DGP_CAMERA_POSE = ([1.0, 2, 0.5], 70.0, [400.0, -250, 12])
DGP_LIDAR_POSE = ([0.0, 0.3, 1], 25.0, [399.2, -250.5, 12.8])


def write_dgp_scene(
    folder: Path, cameras: Sequence[str] = ("CAMERA_01",), seed: int = 0, points: Array | None = None
) -> Array:
    """A scene of one sample, whose sweep is what the first camera sees, or these points in its axes; its depth map."""
    seen, depth = seen_points(seed)
    points = seen if points is None else points
    camera_pose, lidar_pose = DGP_CAMERA_POSE, DGP_LIDAR_POSE
    to_world = rigid(turn(*camera_pose[:2]), camera_pose[2])
    sweep = apply(np.linalg.inv(rigid(turn(*lidar_pose[:2]), lidar_pose[2])) @ to_world, points)
    path = folder / "point_cloud" / "LIDAR" / "100.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, data=np.hstack([sweep, np.ones((len(sweep), 1))]))
    data: list[dict[str, Any]] = [
        {
            "key": "l",
            "id": {"name": "LIDAR"},
            "datum": {"point_cloud": {"filename": "point_cloud/LIDAR/100.npz", "pose": pose_json(*lidar_pose)}},
        }
    ]
    for camera in cameras:
        name = f"rgb/{camera}/120.png"
        write_photo(folder / name)
        image = {"filename": name, "width": W, "height": H, "pose": pose_json(*camera_pose)}
        data.append({"key": camera, "id": {"name": camera}, "datum": {"image": image}})
    sample = {"calibration_key": "c", "datum_keys": [item["key"] for item in data]}
    write_json(folder / "scene_abc.json", {"data": data, "samples": [sample]})
    camera_values = {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "skew": 0.0}
    # The mounts are no poses: whoever takes them gets another depth map.
    mount = pose_json([1, 0, 0], 10, [1, 1, 1])
    calibration = {
        "names": ["LIDAR", *cameras],
        "intrinsics": [dict.fromkeys(camera_values, 0.0), *[camera_values] * len(cameras)],
        "extrinsics": [mount] * (1 + len(cameras)),
    }
    write_json(folder / "calibration" / "c.json", calibration)
    return depth


def write_nuscenes(root: Path, *, version: str = "v1.0-mini") -> Array:
    """One sample of one camera; its depth map."""
    points, depth = seen_points(3)
    poses = {
        "mount_camera": ([1.0, -1, 0.9], 115.0, [1.7, 0, 1.5]),
        "mount_lidar": ([0.0, 0, 1], -90.0, [1.6, 0, 1.8]),
        "ego_camera": ([0.0, 0.1, 1], 33.0, [600.0, 1600, 0.4]),
        "ego_lidar": ([0.0, 0.1, 1], 32.0, [599.9, 1599.8, 0.4]),
    }
    motions = {name: rigid(turn(axis, degrees), place) for name, (axis, degrees, place) in poses.items()}
    to_world = motions["ego_camera"] @ motions["mount_camera"]
    # What the car itself returns stands right before the camera.
    own_roof = np.array([[0.02, 0.01, 0.3], [-0.1, 0.03, 0.4]])
    to_lidar = np.linalg.inv(motions["ego_lidar"] @ motions["mount_lidar"]) @ to_world
    sweep = apply(to_lidar, np.vstack([points, own_roof]))
    write_rows(root / "samples" / "LIDAR_TOP" / "s__LIDAR_TOP__1.pcd.bin", sweep, 5)
    write_photo(root / "samples" / "CAM_FRONT" / "s__CAM_FRONT__2.jpg")
    rows = {
        name: {"token": name, "rotation": quaternion(axis, degrees), "translation": place}
        for name, (axis, degrees, place) in poses.items()
    }
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": "c", "channel": "CAM_FRONT"}, {"token": "l", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [
            {**rows["mount_camera"], "sensor_token": "c", "camera_intrinsic": K.tolist()},
            {**rows["mount_lidar"], "sensor_token": "l", "camera_intrinsic": []},
        ],
        "ego_pose": [rows["ego_camera"], rows["ego_lidar"]],
        "scene": [{"token": "s", "name": "scene-0061"}],
        "sample": [{"token": "a", "scene_token": "s"}],
        "sample_data": [
            {
                "token": f"d{sensor}",
                "sample_token": "a",
                "is_key_frame": True,
                "ego_pose_token": f"ego_{sensor}",
                "calibrated_sensor_token": f"mount_{sensor}",
                "filename": filename,
                **size,
            }
            for sensor, filename, size in (
                ("camera", "samples/CAM_FRONT/s__CAM_FRONT__2.jpg", {"width": W, "height": H}),
                ("lidar", "samples/LIDAR_TOP/s__LIDAR_TOP__1.pcd.bin", {"width": 0, "height": 0}),
            )
        ],
    }
    # Between the key frames there are more images, of another sample_data row.
    tables["sample_data"].append({**tables["sample_data"][0], "token": "sweep", "is_key_frame": False, "filename": "x"})
    for name, values in tables.items():
        write_json(root / version / f"{name}.json", values)
    return depth
