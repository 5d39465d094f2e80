#!/usr/bin/env bash
# onnxruntime 1.31.1, onnxruntime.quantization.quantize_static with per_channel=True.
#
# Expected: a ConvTranspose with group=2 and a bias is quantized like any other, one scale for each output channel.
# Seen:     ValueError "operands could not be broadcast together with shapes (8,) (4,)". The weight of a transposed
#           convolution is (inputs, outputs of one group, rows, columns), so its second axis has the channels of one
#           group only; the scales follow that axis, the bias has all channels, and the two are divided.
#           per_channel=False works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 sympy
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

random = np.random.default_rng(0)
weight = random.standard_normal((8, 4, 3, 3)).astype(np.float32)
bias = random.standard_normal(8).astype(np.float32)
node = helper.make_node("ConvTranspose", ["input", "weight", "bias"], ["output"], group=2, kernel_shape=[3, 3])
graph = helper.make_graph(
    [node],
    "net",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 8, 6, 6])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 8, 8, 8])],
    [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.checker.check_model(model)
onnx.save(model, "net.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"input": random.standard_normal((1, 8, 6, 6)).astype(np.float32)}])

    def get_next(self):
        return next(self.batches, None)


def outcome(per_channel):
    try:
        quantize_static("net.onnx", "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel)
    except ValueError as error:
        return f"ValueError: {error}".strip()
    return "written"


for per_channel in (False, True):
    print(f"per_channel={per_channel}: {outcome(per_channel)}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
per_channel=False: written
per_channel=True: ValueError: operands could not be broadcast together with shapes (8,) (4,)
TXT
diff asked.txt seen.txt && echo "as described"
