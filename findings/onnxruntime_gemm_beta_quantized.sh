#!/usr/bin/env bash
# onnxruntime 1.31.1, onnxruntime.quantization.quantize_static with its defaults (QDQ), Gemm with beta other than 1.
#
# Expected: with a zero input the answer is beta * bias, in the int8 file as in the float file. (quantize_dynamic
#           leaves such a Gemm in float.)
# Seen:     no message, and a wrong bias. With beta=0.5 and a bias of 8 the float file says 4; the int8 file says 8
#           without optimization and 16 with it; with beta=2 it is 16, 8 and 4. The quantizer takes beta into the
#           scale of the bias, makes the integers with this very scale (so beta cancels) and sets the node's beta to
#           1; the fusion to QGemm then reads the integers with the scale of a bias without beta.
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
weight = random.standard_normal((4, 4)).astype(np.float32)
bias = np.array([8, -8, 4, -4], np.float32)
INPUT = np.zeros((1, 4), np.float32)

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


for beta in (1.0, 0.5, 2.0):
    node = helper.make_node("Gemm", ["input", "weight", "bias"], ["output"], beta=beta)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, "net.onnx")
    batches = [{"input": 8 * random.standard_normal((1, 4)).astype(np.float32)} for _ in range(64)]
    quantize_static("net.onnx", "int8.onnx", Reader(batches))
    plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    answers = run("net.onnx"), run("int8.onnx", plain), run("int8.onnx")
    first = [round(float(answer[0, 0])) for answer in answers]
    print(f"beta={beta}: float {first[0]}, int8 not optimized {first[1]}, int8 {first[2]}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
beta=1.0: float 8, int8 not optimized 8, int8 8
beta=0.5: float 4, int8 not optimized 8, int8 16
beta=2.0: float 16, int8 not optimized 8, int8 4
TXT
diff asked.txt seen.txt && echo "as described"
