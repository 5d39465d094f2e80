#!/usr/bin/env bash
# nncf 3.4.0, nncf.quantize of a model of openvino 2026.4.1 with its defaults: a maximum over words that are no padding.
#
# Expected: the maximum, and the layer after it, are about as exact as other 8-bit layers; where padding stands, -1e9
#           keeps it out of the maximum and never reaches an answer.
# Seen:     the masked array is rounded before the maximum, on a grid that spans the -1e9, so every maximum becomes 0
#           and the answer no longer depends on the input. No message. With -100 in place of -1e9 it does.
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
weight = random.standard_normal((8, 8)).astype(np.float32)
words = random.standard_normal((32, 1, 6, 8)).astype(np.float32)
words[:, :, 4:] = 0  # padding


def network(mask):
    texts = opset13.parameter([-1, 6, 8], np.float32)
    padding = opset13.equal(opset13.reduce_sum(opset13.abs(texts), np.array([2]), True), np.float32(0))
    masked = opset13.select(padding, opset13.constant(np.float32(mask)), texts)
    strongest = opset13.reduce_max(masked, np.array([1]), False)
    return openvino.Model([opset13.matmul(strongest, opset13.constant(weight), False, True)], [texts])


def answers(model):
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(text)[0] for text in words])


for mask in (-1e9, -100):
    quantized = answers(nncf.quantize(network(mask), nncf.Dataset(list(words))))
    print(f"{mask:g}: float32 varies: {np.ptp(answers(network(mask)), axis=0).min() > 0.1},", end=" ")
    print(f"int8 varies: {np.ptp(quantized, axis=0).min() > 0.1}")
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | grep varies | tee seen.txt
cat > told.txt <<'TXT'
-1e+09: float32 varies: True, int8 varies: False
-100: float32 varies: True, int8 varies: True
TXT
diff told.txt seen.txt && echo "as described"
