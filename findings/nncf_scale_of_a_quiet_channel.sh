#!/usr/bin/env bash
# nncf 3.4.0, nncf.quantize of a model of openvino 2026.4.1 with its defaults.
#
# Expected: weights have a scale for each output channel, so the largest weight of each channel becomes 127.
# Seen:     no scale is less than 1 % of the largest one in the layer. A channel whose weights are a thousandth of the
#           loudest channel's uses the integers up to 13 only; of one that is quieter still all weights become 0, so its
#           output is 0, without a message. Folding BatchNorm makes channels as different as that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import nncf
import numpy as np
import openvino
from openvino import opset13

random = np.random.default_rng(0)
weight = random.uniform(-1, 1, (4, 16))
weight[:, 0] = 1
weight *= np.array([[1], [0.1], [0.001], [0.00001]])
inputs = opset13.parameter([-1, 16], np.float32)
layer = opset13.matmul(inputs, opset13.constant(weight.astype(np.float32)), False, True)
examples = [random.standard_normal((1, 16)).astype(np.float32) for _ in range(8)]
quantized = nncf.quantize(openvino.Model([layer], [inputs]), nncf.Dataset(examples))
for node in quantized.get_ordered_ops():
    if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8:
        print("largest integer of each channel:", *abs(node.data.astype(int)).max(1))
    if node.get_type_name() == "Multiply":
        print("127 times each scale:", *(f"{127 * scale:.3g}" for scale in node.input_value(1).get_node().data.ravel()))
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | grep -E "^(largest|127)" | sort | tee seen.txt
cat > told.txt <<'TXT'
127 times each scale: 1 0.1 0.01 0.01
largest integer of each channel: 127 127 13 0
TXT
diff told.txt seen.txt && echo "as described"
