"""Other ways to run a network: ONNX Runtime, OpenVINO, and NumPy alone."""

from helpers.runtime import openvino
from helpers.runtime.choosing import Fastest, fastest
from helpers.runtime.export import export_like, export_onnx
from helpers.runtime.images import read_image
from helpers.runtime.integer_graphs import CALIBRATIONS, quantize_static
from helpers.runtime.prediction import Network, Prediction, TextNetwork, open_network, predict
from helpers.runtime.sessions import DeployError, as_module, operator_times, run, session

__all__ = [
    "CALIBRATIONS",
    "DeployError",
    "Fastest",
    "Network",
    "Prediction",
    "TextNetwork",
    "as_module",
    "export_like",
    "export_onnx",
    "fastest",
    "open_network",
    "openvino",
    "operator_times",
    "predict",
    "quantize_static",
    "read_image",
    "run",
    "session",
]
