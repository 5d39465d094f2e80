#!/usr/bin/env bash
# onnxruntime 1.31.1, InferenceSession with its default optimization, two QuantizeLinear/DequantizeLinear pairs in a
# row: a coarse one (step 0.5, as when a few bits are tried out) and then a fine one (step 0.01), both uint8.
#
# Expected: the answers stay on the coarse grid, 0.26 becomes 0.5, as they do without optimization.
# Seen:     the two pairs are merged into one with the fine step, the coarse rounding never happens: 0.26 stays 0.26.
#           In the other order (fine, then coarse) the coarse grid goes too, and the values beyond the fine range are
#           cut off. So a low-bit experiment looks as accurate as 8 bits. One uint8 pair and one int8 pair are kept
#           apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

VALUES = np.array([-1.5, -0.26, 0.1, 0.26, 0.7, 1.1], np.float32)


def pairs(steps, types):
    nodes, weights, last = [], [], "input"
    for number, (step, kind) in enumerate(zip(steps, types)):
        zero = 128 if kind is np.uint8 else 0
        weights.append(numpy_helper.from_array(np.array(step, np.float32), f"step{number}"))
        weights.append(numpy_helper.from_array(np.array(zero, kind), f"zero{number}"))
        grid = [f"step{number}", f"zero{number}"]
        nodes.append(helper.make_node("QuantizeLinear", [last, *grid], [f"q{number}"]))
        last = f"d{number}" if number < 1 else "output"
        nodes.append(helper.make_node("DequantizeLinear", [f"q{number}", *grid], [last]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [6])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run(model, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [round(float(value), 2) + 0.0 for value in session.run(None, {"input": VALUES})[0]]


levels = onnxruntime.GraphOptimizationLevel
for name, steps, types in (
    ("0.5 then 0.01, uint8", (0.5, 0.01), (np.uint8, np.uint8)),
    ("0.01 then 0.5, uint8", (0.01, 0.5), (np.uint8, np.uint8)),
    ("0.5 uint8 then 0.01 int8", (0.5, 0.01), (np.uint8, np.int8)),
):
    model = pairs(steps, types)
    print(name)
    print("  not optimized", run(model, levels.ORT_DISABLE_ALL))
    print("  default      ", run(model, levels.ORT_ENABLE_ALL))
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
0.5 then 0.01, uint8
  not optimized [-1.28, -0.5, 0.0, 0.5, 0.5, 1.0]
  default       [-1.28, -0.26, 0.1, 0.26, 0.7, 1.1]
0.01 then 0.5, uint8
  not optimized [-1.5, -0.5, 0.0, 0.5, 0.5, 1.0]
  default       [-1.28, -0.26, 0.1, 0.26, 0.7, 1.1]
0.5 uint8 then 0.01 int8
  not optimized [-1.28, -0.5, 0.0, 0.5, 0.5, 1.0]
  default       [-1.28, -0.5, 0.0, 0.5, 0.5, 1.0]
TXT
diff asked.txt seen.txt && echo "as described"
