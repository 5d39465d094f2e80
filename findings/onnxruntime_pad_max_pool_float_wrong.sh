#!/usr/bin/env bash
# onnxruntime 1.31.1, a float network with Pad (zeros, around the image) and then MaxPool, and its int8 file from
# quantize_static with the defaults.
#
# Expected: on an image of -1 each window at the edge holds zeros of the padding, so its maximum is 0, in float and in
#           int8.
# Seen:     the float session says -1 at the edge: its optimizer moves the zeros into MaxPool's own padding, which
#           never wins. The int8 file and the float session without optimization say 0. So the loss "by quantization"
#           is the float network's fault, and int8 is right. After a ReLU nothing shows, no value is below 0 there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 sympy
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

random = np.random.default_rng(0)
INPUT = -np.ones((1, 1, 4, 4), np.float32)

class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def run(path, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


graph = helper.make_graph(
    [
        helper.make_node("Pad", ["input", "pads", "value"], ["middle"]),
        helper.make_node("MaxPool", ["middle"], ["output"], kernel_shape=[2, 2], strides=[2, 2]),
    ],
    "net",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 3, 3])],
    [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
        numpy_helper.from_array(np.array(0, np.float32), "value"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.checker.check_model(model)
onnx.save(model, "net.onnx")
batches = [{"input": random.standard_normal((1, 1, 4, 4)).astype(np.float32)} for _ in range(8)]
quantize_static("net.onnx", "int8.onnx", Reader(batches))
plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
for name, answer in (
    ("float not optimized", run("net.onnx", plain)),
    ("float", run("net.onnx")),
    ("int8", run("int8.onnx")),
):
    print(f"{name}: {(np.round(answer[0, 0]) + 0.0).tolist()}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
float not optimized: [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
float: [[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]
int8: [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
TXT
diff asked.txt seen.txt && echo "as described"
