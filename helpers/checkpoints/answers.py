"""What the fine-tuned transformer says of the training reviews and of their windows, stored: a teacher, asked once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from helpers import data
from helpers.core import modules, paths
from helpers.core.vocabulary import PAD, encode
from helpers.training.precision import PRECISIONS, computing_in, fast_precision

BATCH = 64


def ask(model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts classes"]:
    """Return a transformer's logits for texts, computed in bfloat16 where that is the faster.

    Texts of similar length are asked together, so that little is padding. Raises what `data.pieces.tokenize` raises.
    """
    from helpers.data import pieces

    tokens = torch.from_numpy(encode(pieces.tokenize(texts), pieces.words()))
    order = (tokens != PAD).sum(1).argsort(stable=True)
    with modules.evaluating(model), torch.inference_mode(), computing_in(PRECISIONS[fast_precision()], model):
        answers = [model(tokens[places]) for places in order.split(BATCH)]  # which cuts what is padding in all
    return torch.cat(answers)[order.argsort()]


def write(model: nn.Module, path: Path) -> str:
    """Ask the model about `data.pieces.asked` of the training reviews; write half precision, return the SHA-256."""
    from helpers.data import pieces

    content = save({"logits": ask(model, pieces.asked(data.imdb().train.inputs)).half()})
    paths.write_atomically(path, content)
    return paths.sha256(content)


def read(path: Path) -> Float[Tensor, "texts classes"]:
    """Return the logits of a file that `write` wrote."""
    return load_file(path)["logits"].float()
