#!/usr/bin/env bash
# nncf 3.4.0, nncf.compress_weights(mode=INT4_SYM, all_layers=True) of a model of openvino 2026.4.1.
#
# Expected: the weights of all layers are stored as int4, or an error says of which this is impossible.
# Seen:     matrices are; the weights of convolutions are stored as uint8 with a zero point, twice the size and another
#           scheme, and no warning is raised. Only the table that is printed has a line for them.
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


def constant(*shape):
    return opset13.constant(random.standard_normal(shape).astype(np.float32))


def stored(inputs, layer):
    mode = nncf.CompressWeightsMode.INT4_SYM
    model = nncf.compress_weights(openvino.Model([layer], [inputs]), mode=mode, group_size=-1, all_layers=True)
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    weights = [node for node in nodes if np.prod(node.get_output_shape(0)) > 1000]
    return " ".join(node.get_element_type().get_type_name() for node in weights)


vectors, images = opset13.parameter([-1, 64], np.float32), opset13.parameter([-1, 64, 8, 8], np.float32)
print("matrix 64 x 64:", stored(vectors, opset13.matmul(vectors, constant(64, 64), False, True)))
for size in (3, 1):
    layer = opset13.convolution(images, constant(64, 64, size, size), [1, 1], [0, 0], [0, 0], [1, 1])
    print(f"convolution 64 x 64 x {size} x {size}:", stored(images, layer))
PY
"$folder/venv/bin/python" -W error::UserWarning show.py 2> /dev/null | grep -E "^(matrix|convolution)" | tee seen.txt
cat > told.txt <<'TXT'
matrix 64 x 64: i4
convolution 64 x 64 x 3 x 3: u8
convolution 64 x 64 x 1 x 1: u8
TXT
diff told.txt seen.txt && echo "as described"
