#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.numpy.save and save_file of a transposed numpy array (0.7.0 was right).
#
# Expected: the same values come back, or an error, as safetensors.torch gives for tensors that are not contiguous.
# Seen:     the shape is right and the values are in another order: the memory is written as it lies, as if the array
#           were not transposed. No message. So a Dense kernel turned into a Linear weight with .T is stored wrong; a
#           column-major array too. np.ascontiguousarray before saving helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import numpy as np
from safetensors.numpy import load, load_file, save, save_file

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, array in (
    ("as it is", kernel),
    ("transposed", kernel.T),
    ("column-major", np.asfortranarray(kernel)),
    ("transposed, copied", np.ascontiguousarray(kernel.T)),
):
    again = load(save({"weight": array}))["weight"]
    save_file({"weight": array}, "net.safetensors")
    same = np.array_equal(again, load_file("net.safetensors")["weight"])
    right = np.array_equal(again, array)
    print(f"{name}: {array.tolist()} -> {again.tolist()}, right {right}, file alike {same}")
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
as it is: [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] -> [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], right True, file alike True
transposed: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] -> [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], right False, file alike True
column-major: [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] -> [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]], right False, file alike True
transposed, copied: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] -> [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], right True, file alike True
TXT
diff asked.txt seen.txt && echo "as described"
