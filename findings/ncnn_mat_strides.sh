#!/usr/bin/env bash
# ncnn 1.0.20261020, ncnn.Mat of a NumPy array that is a view: the channels of a photograph moved to the front.
#
# Expected: the Mat holds the numbers that NumPy shows, or the view is refused.
# Seen:     shape and type are those of the view, the numbers are not: they are read one after another from where the
#           view begins, as if it had no strides. So image.transpose(2, 0, 1) gives a network a scrambled photograph.
#           np.ascontiguousarray first gives the right ones.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import ncnn
import numpy as np

photograph = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)  # rows, columns, channels
view = photograph.transpose(2, 0, 1)
for name, array in {"view": view, "copy": np.ascontiguousarray(view)}.items():
    held = np.array(ncnn.Mat(array).clone())
    print(f"{name}: shape {held.shape}, first channel {held[0].ravel().tolist()}, equal: {np.array_equal(held, view)}")
PY
"$folder/venv/bin/python" show.py | tee seen.txt
cat > told.txt <<'TXT'
view: shape (3, 2, 2), first channel [0.0, 1.0, 2.0, 3.0], equal: False
copy: shape (3, 2, 2), first channel [0.0, 3.0, 6.0, 9.0], equal: True
TXT
diff told.txt seen.txt && echo "as described"
