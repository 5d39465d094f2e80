#!/usr/bin/env bash
# onnxruntime 1.31.1, linear Resize of quantized values: quantize_static with quant_format=QOperator, which puts
# Resize on the integers themselves (in QDQ format it stays between DequantizeLinear and QuantizeLinear).
#
# Expected: interpolated values are rounded to the nearest step, so the mean error over many values is about 0.
# Seen:     uint8 values are cut, not rounded: the mean is half a step low after each Resize, and it adds up.
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
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

random = np.random.default_rng(0)
INPUT = random.uniform(-1, 1, (1, 1, 32, 32)).astype(np.float32)

class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


for number in (1, 2, 3):
    names = ["middle", *[f"up{i}" for i in range(1, number)], "output"]
    nodes = [helper.make_node("Conv", ["input", "weight"], ["middle"])]
    for before, after in zip(names, names[1:]):
        nodes.append(helper.make_node("Resize", [before, "", "scales"], [after], mode="linear"))
    size = 32 * 2**number
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, size, size])],
        [
            numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, "net.onnx")
    for quant_format in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(
            "net.onnx",
            "int8.onnx",
            Reader([{"input": INPUT}]),
            quant_format=quant_format,
            activation_type=QuantType.QUInt8,
        )
        weights = {item.name: numpy_helper.to_array(item) for item in onnx.load("int8.onnx").graph.initializer}
        error = (run("int8.onnx") - run("net.onnx")).mean() / float(weights["middle_scale"])
        print(f"{number} times, {quant_format.name}: mean error {round(float(error), 1) + 0.0} steps")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
1 times, QDQ: mean error 0.0 steps
1 times, QOperator: mean error -0.5 steps
2 times, QDQ: mean error 0.0 steps
2 times, QOperator: mean error -0.9 steps
3 times, QDQ: mean error 0.0 steps
3 times, QOperator: mean error -1.4 steps
TXT
diff asked.txt seen.txt && echo "as described"
