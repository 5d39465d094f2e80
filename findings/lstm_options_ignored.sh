#!/usr/bin/env bash
# onnx 1.23.2 (ReferenceEvaluator), tract 0.23.9 and opencv-python-headless 5.0.0.93 (cv2.dnn) against onnxruntime
# 1.31.1, on ONNX's LSTM and GRU with sequence_lens, clip or activations.
#
# Expected: a runtime gives ONNX Runtime's numbers or refuses the file; the reference evaluator is right by its name.
# Seen:     only ONNX Runtime heeds them all. The reference evaluator ignores each of them without a word: with
#           sequence_lens it runs on through the padding, so it confirms no recurrent net on padded text. tract
#           ignores clip and activations (and refuses sequence_lens), OpenCV ignores clip, and sequence_lens of a GRU.
#           Three that agree are no proof here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 tract==0.23.9 opencv-python-headless==5.0.0.93
cd "$folder"
cat > show.py <<'PY'
import cv2
import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

random = np.random.default_rng(0)
INPUT = 2 * random.standard_normal((5, 2, 6)).astype(np.float32)


def write(kind, lengths=None, **options):
    gates = 4 if kind == "LSTM" else 3
    shapes = {"weight": (1, gates * 8, 6), "again": (1, gates * 8, 8), "bias": (1, gates * 16)}
    weights = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    names = ["input", *shapes]
    if lengths:
        weights.append(numpy_helper.from_array(np.array(lengths, np.int32), "lengths"))
        names.append("lengths")
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["output", "last"], hidden_size=8, **options)],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [5, 2, 6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [5, 1, 2, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "net.onnx")


def by_onnxruntime():
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"input": INPUT})[0]


def by_reference():
    return ReferenceEvaluator("net.onnx").run(None, {"input": INPUT})[0]


def by_tract():
    return tract.onnx().load("net.onnx").into_model().into_runnable().run([INPUT])[0].to_numpy()


def by_opencv():
    net = cv2.dnn.readNetFromONNX("net.onnx")
    net.setInput(INPUT, "input")
    return net.forward()


def verdict(run, right):
    try:
        answer = run()
    except Exception:
        return "refused"
    return "same" if np.allclose(answer.reshape(right.shape), right, atol=1e-4) else "OTHER"


for name, arguments in (
    ("LSTM", dict(kind="LSTM")),
    ("LSTM, sequence_lens", dict(kind="LSTM", lengths=[5, 3])),
    ("LSTM, clip=0.3", dict(kind="LSTM", clip=0.3)),
    ("LSTM, activations", dict(kind="LSTM", activations=["Sigmoid", "Tanh", "Relu"])),
    ("GRU", dict(kind="GRU", linear_before_reset=1)),
    ("GRU, sequence_lens", dict(kind="GRU", linear_before_reset=1, lengths=[5, 3])),
    ("GRU, clip=0.3", dict(kind="GRU", linear_before_reset=1, clip=0.3)),
):
    write(**arguments)
    right = by_onnxruntime()
    runs = dict(reference=by_reference, tract=by_tract, OpenCV=by_opencv)
    print(f"{name}:", ", ".join(f"{runtime} {verdict(run, right)}" for runtime, run in runs.items()))
PY
"$folder/venv/bin/python" show.py 2>/dev/null | tee seen.txt
cat > asked.txt <<'TXT'
LSTM: reference same, tract same, OpenCV same
LSTM, sequence_lens: reference OTHER, tract refused, OpenCV refused
LSTM, clip=0.3: reference OTHER, tract OTHER, OpenCV OTHER
LSTM, activations: reference OTHER, tract OTHER, OpenCV refused
GRU: reference same, tract same, OpenCV same
GRU, sequence_lens: reference OTHER, tract refused, OpenCV OTHER
GRU, clip=0.3: reference OTHER, tract OTHER, OpenCV OTHER
TXT
diff asked.txt seen.txt && echo "as described"
