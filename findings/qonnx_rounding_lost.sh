#!/usr/bin/env bash
# qonnx 1.0.0, QuantToQCDQ on a Quant node with rounding_mode FLOOR or CEIL (cheap in hardware), the result run by
# onnxruntime 1.31.1.
#
# Expected: the same values as qonnx's own execution of Quant, or a refusal, as for a zero point (that node is left as
#           it is).
# Seen:     the node becomes QuantizeLinear + Clip + DequantizeLinear, which round to nearest; FLOOR and CEIL are
#           dropped without a message, and values differ by a whole step. With ROUND all are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qonnx==1.0.0 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 'setuptools<81'
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

VALUES = np.array([[-0.9, -0.3, -0.2, 0.1, 0.2, 0.3, 0.45, 0.9]], np.float32)
numbers = {"scale": 0.25, "zero": 0, "bits": 4}
for mode in ("ROUND", "FLOOR", "CEIL"):
    node = helper.make_node(
        "Quant",
        ["input", *numbers],
        ["output"],
        domain="qonnx.custom_op.general",
        signed=1,
        narrow=0,
        rounding_mode=mode,
    )
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()],
    )
    domains = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
    model = ModelWrapper(helper.make_model(graph, opset_imports=domains, ir_version=8))
    own = execute_onnx(model, {"input": VALUES})["output"]
    converted = model.transform(QuantToQCDQ()).model
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    other = session.run(None, {"input": VALUES})[0]
    print(mode, [node.op_type for node in converted.graph.node if node.op_type != "Constant"])
    print("  qonnx    ", (own[0] + 0.0).tolist())
    print("  converted", (other[0] + 0.0).tolist())
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
ROUND ['QuantizeLinear', 'Clip', 'DequantizeLinear']
  qonnx     [-1.0, -0.25, -0.25, 0.0, 0.25, 0.25, 0.5, 1.0]
  converted [-1.0, -0.25, -0.25, 0.0, 0.25, 0.25, 0.5, 1.0]
FLOOR ['QuantizeLinear', 'Clip', 'DequantizeLinear']
  qonnx     [-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.25, 0.75]
  converted [-1.0, -0.25, -0.25, 0.0, 0.25, 0.25, 0.5, 1.0]
CEIL ['QuantizeLinear', 'Clip', 'DequantizeLinear']
  qonnx     [-0.75, -0.25, 0.0, 0.25, 0.25, 0.5, 0.5, 1.0]
  converted [-1.0, -0.25, -0.25, 0.0, 0.25, 0.25, 0.5, 1.0]
TXT
diff asked.txt seen.txt && echo "as described"
