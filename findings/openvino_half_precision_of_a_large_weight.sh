#!/usr/bin/env bash
# openvino 2026.4.1, save_model with its defaults, which stores float32 weights as float16.
#
# Expected: a weight that float16 cannot hold is kept in float32, or becomes infinite, or a message names it.
# Seen:     it becomes 65,504, and one of 1e-9 becomes 0, without a word; unless three quarters of an array are such
#           numbers: then all of it stays in float32, 1.5 as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import openvino
from openvino import opset13


def after(weights):
    inputs = opset13.parameter([4], np.float32)
    layer = opset13.multiply(inputs, opset13.constant(np.array(weights, np.float32)))
    openvino.save_model(openvino.Model([layer], [inputs]), "net.xml")
    opened = openvino.Core().read_model("net.xml")
    kept = next(node for node in opened.get_ordered_ops() if node.get_type_name() == "Constant")
    return kept.get_element_type().get_type_name(), [float(f"{number:.6g}") for number in kept.data]


for weights in ([100000, 1e-9, 1.5, 2], [100000, 1e-9, 200000, 1.5]):
    print(weights, "->", *after(weights))
PY
"$folder/venv/bin/python" show.py 2>&1 | tee seen.txt
cat > told.txt <<'TXT'
[100000, 1e-09, 1.5, 2] -> f16 [65504.0, 0.0, 1.5, 2.0]
[100000, 1e-09, 200000, 1.5] -> f32 [100000.0, 1e-09, 200000.0, 1.5]
TXT
diff told.txt seen.txt && echo "as described"
