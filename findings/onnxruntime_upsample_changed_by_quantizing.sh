#!/usr/bin/env bash
# onnxruntime 1.31.1 with onnx 1.23.2, quantize_static and quantize_dynamic on a file of opset 9 with a linear
# Upsample.
#
# Expected: a ramp is upsampled as in the float file, up to a step of 8 bits.
# Seen:     another interpolation, half a source pixel off. Both quantizers first raise an old file to opset 11 with
#           onnx's version_converter, which turns Upsample into Resize and does not write the coordinate rule that
#           Upsample had (asymmetric); Resize's default is half_pixel. The convolution of the int8 file is blameless,
#           and calibration in float does not notice, as it comes after the conversion.
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
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

INPUT = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)

class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


graph = helper.make_graph(
    [
        helper.make_node("Conv", ["input", "weight"], ["middle"]),
        helper.make_node("Upsample", ["middle", "scales"], ["output"], mode="linear"),
    ],
    "net",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 1, 4])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, 8])],
    [
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight"),
        numpy_helper.from_array(np.array([1, 1, 1, 2], np.float32), "scales"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, "net.onnx")
quantize_static("net.onnx", "static.onnx", Reader([{"input": INPUT}]))
quantize_dynamic("net.onnx", "dynamic.onnx")
onnx.save(onnx.version_converter.convert_version(model, 11), "float11.onnx")
for path in ("net.onnx", "static.onnx", "dynamic.onnx", "float11.onnx"):
    print(f"{path}: {(np.round(run(path)[0, 0, 0] * 4) / 4).tolist()}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
net.onnx: [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
static.onnx: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
dynamic.onnx: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
float11.onnx: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
TXT
diff asked.txt seen.txt && echo "as described"
