#!/usr/bin/env bash
# iree-base-compiler 3.13.0, an ONNX DepthToSpace with mode="CRD": torch's pixel_shuffle, of networks that enlarge.
#
# Expected: the four channels of each pixel become 2 x 2 pixels; with one channel left, in either mode the same ones.
# Seen:     "DCR" is right; "CRD" is compiled without a word, and its numbers stand at other places.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 \
    onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import numpy as np
import onnx
from iree import runtime
from iree.compiler import compile_str, ir
from iree.compiler.extras import onnx_importer
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def both(node, sizes, inputs, constants):
    """Return what onnx's own reference and IREE compute."""
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in sizes.items()]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "net", sides[:1], sides[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    with ir.Context() as context:
        info = onnx_importer.ModelInfo(model)
        module = info.create_module(context=context).operation
        onnx_importer.NodeImporter.define_function(info.main_graph, module).import_all()
        text = str(module)
    made = compile_str(text, target_backends=["llvm-cpu"], input_type="onnx")
    opened = runtime.load_vm_flatbuffer(made, driver="local-sync")
    return ReferenceEvaluator(model).run(None, {"x": inputs})[0], np.array(opened["net"](inputs).to_host())


images = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)
for mode in ("DCR", "CRD"):
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)
    right, seen = both(node, {"x": [1, 4, 2, 2], "y": [1, 1, 4, 4]}, images, {})
    for name, found in (("onnx", right), ("IREE", seen)):
        print(f"{mode}, {name}: first row {found[0, 0, 0].astype(int).tolist()}")
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | tee seen.txt
cat > told.txt <<'TXT'
DCR, onnx: first row [0, 4, 1, 5]
DCR, IREE: first row [0, 4, 1, 5]
CRD, onnx: first row [0, 4, 1, 5]
CRD, IREE: first row [0, 1, 4, 5]
TXT
diff told.txt seen.txt && echo "as described"
