#!/usr/bin/env bash
# torch 2.14.1, torch.export.save.
#
# Expected: the file of an exported network holds its graph and weights; the example that it was exported with, if it
#           is kept at all, as the rows that were given.
# Seen:     the file holds the whole storage that the example was cut from. A network of 40 numbers, exported with two
#           of 1,000 images, is a file of 12 MB, and image 500, which nobody passed, can be read in it. The
#           example's .clone() leaves it out; the two rows stay in the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cd "$folder"
cat > show.py <<'PY'
import zipfile

import torch
from torch import nn

torch.manual_seed(0)
images = torch.rand(1000, 3, 32, 32)
net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()


def saved(words, example):
    torch.export.save(torch.export.export(net, (example,)), "net.pt2")
    with zipfile.ZipFile("net.pt2") as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    held = [number for number in (0, 1, 2, 500) if any(images[number].numpy().tobytes() in part for part in parts)]
    print(f"{words}: {sum(map(len, parts)) / 1e6:.1f} MB; of the images 0, 1, 2, 500 it holds {held}")


saved("images[:2]", images[:2])
saved("images[:2].clone()", images[:2].clone())
PY
"$folder/venv/bin/python" -W ignore show.py | tee seen.txt
cat > told.txt <<'TXT'
images[:2]: 12.3 MB; of the images 0, 1, 2, 500 it holds [0, 1, 2, 500]
images[:2].clone(): 0.0 MB; of the images 0, 1, 2, 500 it holds [0, 1]
TXT
diff told.txt seen.txt && echo "as described"
