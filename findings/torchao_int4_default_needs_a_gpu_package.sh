#!/usr/bin/env bash
# torchao 0.18.0 beside torch 2.14.1: quantize_(model, Int4WeightOnlyConfig()), its 4-bit weights with all defaults, on a
# machine without a GPU.
#
# Guess:    the weights are packed in some plain form, and the layer answers (slowly).
# Seen:     an ImportError that asks for "mslk", a package of GPU kernels that torchao does not depend on; nothing says
#           that the default is for GPUs. IntxWeightOnlyConfig with int4 and the same groups works on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchao==0.18.0 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import copy

import torch
from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

net = torch.nn.Sequential(torch.nn.Linear(256, 64)).eval()
for name, config in {
    "Int4WeightOnlyConfig": Int4WeightOnlyConfig(),
    "IntxWeightOnlyConfig": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(128)),
}.items():
    try:
        copied = copy.deepcopy(net)
        quantize_(copied, config)
        print(f"{name}: answers", tuple(copied(torch.ones(1, 256)).shape))
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | tee seen.txt
cat > told.txt <<'TXT'
Int4WeightOnlyConfig: ImportError: Requires mslk >= 1.0.0
IntxWeightOnlyConfig: answers (1, 64)
TXT
diff told.txt seen.txt && echo "as described"
