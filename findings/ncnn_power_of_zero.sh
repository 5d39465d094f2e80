#!/usr/bin/env bash
# ncnn 1.0.20261020, BinaryOp 6 (pow) with the number 3, which pnnx 20261020 writes for x ** 3.
#
# Expected: 0 to the power of 3 is 0, and -3 to the power of 3 is -27, as everywhere else.
# Seen:     for zeros and for negative numbers about 2.4e38, finite and without a word; positive numbers are right.
#           The same layer, given 9 numbers, has the ninth right: what is left over after vectors of 8 or 4 is
#           computed by another code. UnaryOp 4 (square), which pnnx writes for x ** 2, is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
cd "$folder"
: > net.bin
cat > show.py <<'PY'
from pathlib import Path

import ncnn
import numpy as np


def computed(layer, numbers):
    Path("net.param").write_text(f"7767517\n2 2\nInput input 0 1 x\n{layer}\n")
    net = ncnn.Net()
    net.load_param("net.param")
    net.load_model("net.bin")
    extractor = net.create_extractor()
    extractor.input("x", ncnn.Mat(np.array(numbers, np.float32)).clone())
    return np.array(extractor.extract("y")[1])


def told(numbers):
    return [f"{number:.3f}" if abs(number) < 1e30 else "above 1e30" for number in numbers.tolist()]


power, square = "BinaryOp power 1 1 x y 0=6 1=1 2=3.0", "UnaryOp square 1 1 x y 0=4"
for number in (3.0, 0.0, -3.0):
    print(f"{number} to the power of 3:", sorted(set(told(computed(power, [number] * 8)))))
print("the ninth of nine -3.0:", told(computed(power, [-3.0] * 9))[8])
print("square of -3.0:", sorted(set(told(computed(square, [-3.0] * 8)))))
PY
"$folder/venv/bin/python" show.py | tee seen.txt
cat > told.txt <<'TXT'
3.0 to the power of 3: ['27.000']
0.0 to the power of 3: ['above 1e30']
-3.0 to the power of 3: ['above 1e30']
the ninth of nine -3.0: -27.000
square of -3.0: ['9.000']
TXT
diff told.txt seen.txt && echo "as described"
