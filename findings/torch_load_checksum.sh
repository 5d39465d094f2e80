#!/usr/bin/env bash
# torch 2.14.1, torch.load of a file on a disk that changed one bit.
#
# Expected: the file is a zip archive with a checksum of each part, so a weight whose bit flipped is reported.
# Seen:     it loads without a word, one number changed; zipfile.testzip, on the same bytes, names the damaged part.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cd "$folder"
cat > show.py <<'PY'
import io
import zipfile

import torch

torch.manual_seed(0)
weights = torch.randn(1000)
saved = io.BytesIO()
torch.save({"weights": weights}, saved)
content = bytearray(saved.getvalue())
content[bytes(content).index(weights.numpy().tobytes()) + 400] ^= 1  # the lowest bit of weight 100
again = torch.load(io.BytesIO(bytes(content)), weights_only=True)["weights"]
print("torch.load: loaded, numbers changed:", int((again != weights).sum()))
print("zipfile.testzip:", zipfile.ZipFile(io.BytesIO(bytes(content))).testzip())
PY
"$folder/venv/bin/python" -W ignore show.py | tee seen.txt
cat > told.txt <<'TXT'
torch.load: loaded, numbers changed: 1
zipfile.testzip: archive/data/0
TXT
diff told.txt seen.txt && echo "as described"
