#!/usr/bin/env bash
# onnxruntime 1.31.1, session.x64quantprecision on an x86 processor.
#
# Expected: two int8 weights may share one zero point (all zeros), as in what torch's exporter writes: a constant may
#           have any number of readers, and the file opens with this setting as it does without.
# Seen:     Fail "Attempt to replace the existing tensor". The setting makes the weights unsigned, and stores the new
#           zero point once for each weight, under the same name. With a zero point of its own each weight is taken.
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

random = np.random.default_rng(0)


def layer(number, source, zero):
    yield helper.make_node("QuantizeLinear", [source, "step", "middle"], [f"code{number}"])
    yield helper.make_node("DequantizeLinear", [f"code{number}", "step", "middle"], [f"input{number}"])
    yield helper.make_node("DequantizeLinear", [f"weight{number}", "steps", zero], [f"real{number}"], axis=0)
    yield helper.make_node("Conv", [f"input{number}", f"real{number}"], [f"output{number}"])


def model(second_zero):
    last = [
        helper.make_node("QuantizeLinear", ["output2", "step", "middle"], ["code3"]),
        helper.make_node("DequantizeLinear", ["code3", "step", "middle"], ["output"]),
    ]
    constants = {
        "weight1": random.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8),
        "weight2": random.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8),
        "steps": np.full(4, 0.01, np.float32),
        "zero1": np.zeros(4, np.int8),
        "zero2": np.zeros(4, np.int8),
        "step": np.float32(0.02),
        "middle": np.uint8(128),
    }
    graph = helper.make_graph(
        [*layer(1, "image", "zero1"), *layer(2, "output1", second_zero), *last],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4, 2, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(whole)
    return whole.SerializeToString()


def outcome(second_zero, setting):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", setting)
    try:
        onnxruntime.InferenceSession(model(second_zero), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][-38:]}"
    return "opened"


for words, second_zero in (("one each", "zero2"), ("shared", "zero1")):
    for setting in ("0", "1"):
        print(f"zero point {words}, x64quantprecision={setting}: {outcome(second_zero, setting)}")
PY
"$folder/venv/bin/python" show.py | tee seen.txt
cat > told.txt <<'TXT'
zero point one each, x64quantprecision=0: opened
zero point one each, x64quantprecision=1: opened
zero point shared, x64quantprecision=0: opened
zero point shared, x64quantprecision=1: Fail: Attempt to replace the existing tensor
TXT
diff told.txt seen.txt && echo "as described"
