#!/usr/bin/env bash
# nncf 3.4.0, nncf.quantize of a model of openvino 2026.4.1, in which the shape of an embedding's table is asked, as in
# what convert_model makes of some text networks of torch.
#
# Expected: the table is stored as int8, so the file has about a quarter of the float32 one's size.
# Seen:     it is stored twice, as int8 and, for nothing but its shape, as float32: the file is a quarter larger.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
from pathlib import Path

import nncf
import numpy as np
import openvino
from openvino import opset13

random = np.random.default_rng(0)
table = opset13.constant(random.standard_normal((1000, 64)).astype(np.float32))
words = opset13.parameter([-1, -1], np.int64)
width = opset13.gather(opset13.shape_of(table), np.array([1]), np.int64(0))
size = opset13.concat([np.array([-1]), width], 0)
flat = opset13.reshape(opset13.gather(table, words, np.int64(0)), size, False)
last = opset13.constant(random.standard_normal((2, 64)).astype(np.float32))
model = openvino.Model([opset13.matmul(flat, last, False, True)], [words])
examples = [random.integers(0, 1000, (1, 12)) for _ in range(32)]
for name, each in (("float32", model), ("int8", nncf.quantize(model, nncf.Dataset(examples)))):
    openvino.save_model(each, f"{name}.xml", compress_to_fp16=False)
    tables = [node for node in openvino.Core().read_model(f"{name}.xml").get_ordered_ops()
              if node.get_type_name() == "Constant" and list(node.get_output_shape(0)) == [1000, 64]]
    share = Path(f"{name}.bin").stat().st_size / (4 * 1002 * 64)
    types = sorted(node.get_element_type().get_type_name() for node in tables)
    print(f"{name}: tables as", *types, f"file {share:.2f}")
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | grep tables | tee seen.txt
cat > told.txt <<'TXT'
float32: tables as f32 file 1.00
int8: tables as f32 i8 file 1.25
TXT
diff told.txt seen.txt && echo "as described"
