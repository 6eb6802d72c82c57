"""From photos to geometry with a trained model: predictions, meshes, panoramas, and files a person can open."""

from moge_core.inference.files import InferenceReport, infer_path, write_prediction
from moge_core.inference.meshes import point_map_to_mesh
from moge_core.inference.panorama import predict_panorama
from moge_core.inference.prediction import Prediction, predict

__all__ = [
    "InferenceReport",
    "Prediction",
    "infer_path",
    "point_map_to_mesh",
    "predict",
    "predict_panorama",
    "write_prediction",
]
