#!/usr/bin/env bash
# onnxruntime 1.31.1, quantize_static with its defaults (QDQ) on Conv + AveragePool with ceil_mode=1 and
# count_include_pad=1 (PyTorch's AvgPool2d(2, ceil_mode=True) is exported so; no padding, 5 x 5 image).
#
# Expected: the mean of an image of ones is one everywhere, also in the windows that stick out over the edge. The
#           float file says so, and the int8 file too when it is not optimized.
# Seen:     optimized, as by default, the pair around AveragePool becomes QLinearAveragePool, which counts the places
#           beyond the edge as padding: 0.5 along two edges and 0.25 in the corner. No message.
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
INPUT = np.ones((1, 1, 5, 5), np.float32)

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


pool = dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1)
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["input", "weight"], ["middle"]),
        helper.make_node("AveragePool", ["middle"], ["output"], **pool),
    ],
    "net",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 5, 5])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 3, 3])],
    [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
onnx.checker.check_model(model)
onnx.save(model, "net.onnx")
batches = [{"input": random.standard_normal((1, 1, 5, 5)).astype(np.float32)} for _ in range(8)]
quantize_static("net.onnx", "int8.onnx", Reader(batches))
plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
for name, answer in (
    ("float", run("net.onnx")),
    ("int8 not optimized", run("int8.onnx", plain)),
    ("int8", run("int8.onnx")),
):
    print(f"{name}: {(np.round(answer[0, 0] * 4) / 4).tolist()}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
float: [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
int8 not optimized: [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
int8: [[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 0.25]]
TXT
diff asked.txt seen.txt && echo "as described"
