#!/usr/bin/env bash
# openvino 2026.4.1, convert_model of torch.nn.EmbeddingBag(mode="mean", padding_idx=...) of torch 2.14.1.
#
# Expected: padding does not count in the mean, or the conversion is refused.
# Seen:     padding_idx is dropped without a word. A text of two words and two of padding gets half of its mean (the
#           vector of padding is 0), and the more padding a batch needs, the smaller are its means.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 torch==2.14.1 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import openvino
import torch
from torch import nn

bag = nn.EmbeddingBag(4, 1, mode="mean", padding_idx=0).eval()
with torch.no_grad():
    bag.weight.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
texts = torch.tensor([[1, 2, 3, 3], [2, 2, 0, 0], [3, 0, 0, 0]])
compiled = openvino.compile_model(openvino.convert_model(bag, example_input=texts), "CPU")
print("torch:", *bag(texts).flatten().tolist())
print("openvino:", *compiled(texts.numpy())[0].ravel().tolist())
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | tee seen.txt
cat > told.txt <<'TXT'
torch: 2.25 2.0 3.0
openvino: 2.25 1.0 0.75
TXT
diff told.txt seen.txt && echo "as described"
