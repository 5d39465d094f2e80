#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, cv2.dnn on the file that onnxruntime 1.31.1's quantize_static writes with
# quant_format=QOperator (OpenCV 5 refuses the QDQ file of the same net), Conv + AveragePool(3, pads 1).
#
# Expected: the numbers of ONNX Runtime up to a step; count_include_pad is 0 by default, so the mean of an image of
#           ones is one at the edge as well. OpenCV does so with the float file.
# Seen:     in the int8 file OpenCV divides by 9 everywhere: 0.67 along the edges, 0.44 in the corners. No message.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 sympy opencv-python-headless==5.0.0.93
cd "$folder"
cat > show.py <<'PY'
import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

random = np.random.default_rng(0)
INPUT = np.ones((1, 1, 4, 4), np.float32)

class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def by_onnxruntime(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


def by_opencv(path):
    net = cv2.dnn.readNetFromONNX(path)
    net.setInput(INPUT)
    return net.forward()


graph = helper.make_graph(
    [
        helper.make_node("Conv", ["input", "weight"], ["middle"]),
        helper.make_node("AveragePool", ["middle"], ["output"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ],
    "net",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 4, 4])],
    [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, "net.onnx")
batches = [{"input": random.standard_normal((1, 1, 4, 4)).astype(np.float32)} for _ in range(8)]
quantize_static("net.onnx", "int8.onnx", Reader(batches), quant_format=QuantFormat.QOperator)
for path in ("net.onnx", "int8.onnx"):
    for run in (by_onnxruntime, by_opencv):
        answer = run(path)[0, 0]
        print(f"{path} {run.__name__}: corner {answer[0, 0]:.1f}, edge {answer[0, 1]:.1f}, inside {answer[1, 1]:.1f}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
net.onnx by_onnxruntime: corner 1.0, edge 1.0, inside 1.0
net.onnx by_opencv: corner 1.0, edge 1.0, inside 1.0
int8.onnx by_onnxruntime: corner 1.0, edge 1.0, inside 1.0
int8.onnx by_opencv: corner 0.4, edge 0.7, inside 1.0
TXT
diff asked.txt seen.txt && echo "as described"
