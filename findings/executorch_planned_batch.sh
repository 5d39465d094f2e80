#!/usr/bin/env bash
# executorch 1.5.1, XNNPACK, torch 2.14.1: a convolution exported for batches of 1 to 64, by an example of two images.
#
# Expected: the file plans its memory for 64 images, as the range says, and takes 64.
# Seen:     it is planned for 15 and refuses 64, with RuntimeError, only when it runs; nothing was said in lowering.
#           An example of 16 images or more gives 64, and so does any example without the partitioner, or for a network
#           that has no convolution.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check executorch==1.5.1 torch==2.14.1 torchao==0.18.0 numpy==2.4.6
cd "$folder"
cat > show.py <<'PY'
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

torch.manual_seed(0)
images = torch.randn(64, 3, 8, 8)


def tried(network, example, partitioners):
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(network, (images[:example],), dynamic_shapes=sizes)
    written = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch().buffer
    opened = Runtime.get().load_program(written)
    planned = opened.metadata("forward").input_tensor_meta(0).sizes()[0]
    try:
        opened.load_method("forward").execute([images])
    except RuntimeError:
        return f"planned for {planned}, 64 images: RuntimeError"
    return f"planned for {planned}, 64 images: answered"


convolution = nn.Conv2d(3, 4, 3).eval()
print("convolution, example of 2:", tried(convolution, 2, [XnnpackPartitioner()]))
print("convolution, example of 16:", tried(convolution, 16, [XnnpackPartitioner()]))
print("convolution, example of 2, no partitioner:", tried(convolution, 2, []))
print("ReLU, example of 2:", tried(nn.ReLU(), 2, [XnnpackPartitioner()]))
PY
"$folder/venv/bin/python" -W ignore show.py 2> /dev/null | grep '^[CR].*example\|^conv.*example' | tee seen.txt
cat > told.txt <<'TXT'
convolution, example of 2: planned for 15, 64 images: RuntimeError
convolution, example of 16: planned for 64, 64 images: answered
convolution, example of 2, no partitioner: planned for 64, 64 images: answered
ReLU, example of 2: planned for 64, 64 images: answered
TXT
diff told.txt seen.txt && echo "as described"
