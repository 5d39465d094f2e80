#!/usr/bin/env bash
# onnxruntime 1.31.1, quantize_static with its defaults on attention (MatMul, Softmax, MatMul) over 64 and over 1,024
# keys.
#
# Expected: the scale of Softmax's output comes from calibration like every other one, the output is a few percent
#           off.
# Seen:     over 1,024 keys the output is exactly zero. Whatever calibration saw, Softmax's output gets the range
#           0..1, so the step is 1/255; attention spread over more than 510 keys has all its weights below half a
#           step. Softmax in a classifier never shows this.
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

class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


for keys in (64, 1024):
    key = 0.05 * random.standard_normal((16, keys)).astype(np.float32)
    value = (1 + random.standard_normal((keys, 16))).astype(np.float32)
    INPUT = random.standard_normal((8, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "key"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
            helper.make_node("MatMul", ["shares", "value"], ["output"]),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [8, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [8, 16])],
        [numpy_helper.from_array(key, "key"), numpy_helper.from_array(value, "value")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, "net.onnx")
    quantize_static("net.onnx", "int8.onnx", Reader([{"input": INPUT}]))
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load("int8.onnx").graph.initializer}
    ratio = np.abs(run("int8.onnx")).mean() / np.abs(run("net.onnx")).mean()
    print(f"{keys} keys: step 1/{round(1 / float(weights['shares_scale']))}, int8 / float {ratio:.1f}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
64 keys: step 1/255, int8 / float 1.0
1024 keys: step 1/255, int8 / float 0.0
TXT
diff asked.txt seen.txt && echo "as described"
