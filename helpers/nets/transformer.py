"""A transformer's encoder with a classifier on it: MiniLM, pretrained on sentences, with the course's own modules."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core.vocabulary import PAD
from helpers.nets.classifiers import without_padding

PIECES, POSITIONS = 30_522, 512  # of MiniLM: the pieces of words that it knows, and the longest text


class Attention(nn.Module):
    """Scaled dot-product attention in several heads (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

    Each head compares its queries with its keys, `width` numbers each, and takes the mean of the values by the softmax
    of that. The rows of `query`, `key` and `value`, and the columns of `output`, lie head by head.
    """

    def __init__(self, dimensions: int, heads: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.query = nn.Linear(dimensions, heads * width)
        self.key = nn.Linear(dimensions, heads * width)
        self.value = nn.Linear(dimensions, heads * width)
        self.output = nn.Linear(heads * width, dimensions)

    @property
    def heads(self) -> int:
        """Return the number of heads that there are: fewer once some were removed."""
        return self.query.out_features // self.width

    def forward(
        self, x: Float[Tensor, "batch length dimensions"], real: Bool[Tensor, "batch 1 1 length"]
    ) -> Float[Tensor, "batch length dimensions"]:
        """Return what the heads found for each token; `real` is False where there is padding, which nobody sees."""
        query, key, value = (self._by_head(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Float[Tensor, "batch length units"]) -> Float[Tensor, "batch heads length width"]:
        return x.unflatten(2, (self.heads, self.width)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers for each token alone; each is added to what came in, then normalized.

    This is the order of the first transformer and of BERT, `norm_first=False` in `nn.TransformerEncoderLayer`.
    """

    def __init__(self, dimensions: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dimensions, heads, width)
        self.norm1 = nn.LayerNorm(dimensions, eps=1e-12)
        self.fc1 = nn.Linear(dimensions, hidden)
        self.fc2 = nn.Linear(hidden, dimensions)
        self.norm2 = nn.LayerNorm(dimensions, eps=1e-12)

    def forward(
        self, x: Float[Tensor, "batch length dimensions"], real: Bool[Tensor, "batch 1 1 length"]
    ) -> Float[Tensor, "batch length dimensions"]:
        """Return the tokens after this layer."""
        x = self.norm1(x + self.attention(x, real))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class Transformer(nn.Module):
    """Vectors of tokens and of their places, encoder layers, the mean over the tokens, and a linear classifier.

    Padding stands at the end; no token sees it and the mean leaves it out, so it changes nothing.
    """

    def __init__(
        self,
        words: int = PIECES,
        *,
        dimensions: int = 384,
        heads: int = 12,
        hidden: int = 1_536,
        layers: int = 6,
        max_tokens: int = POSITIONS,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dimensions, padding_idx=PAD)
        self.position = nn.Embedding(max_tokens, dimensions)
        self.norm = nn.LayerNorm(dimensions, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        width = dimensions // heads
        self.layers = nn.ModuleList(EncoderLayer(dimensions, heads, width, hidden) for _ in range(layers))
        self.fc = nn.Linear(dimensions, classes)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        tokens = without_padding(tokens)
        real = tokens != PAD
        return self.fc(self.dropout(mean_of(self.encode(tokens), real)))

    def encode(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length dimensions"]:
        """Return the tokens after the last layer."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.norm(self.embedding(tokens) + self.position(places)))
        real = (tokens != PAD)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, real)
        return x


def mean_of(
    x: Float[Tensor, "batch length dimensions"], real: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dimensions"]:
    """Return the mean over the tokens that are no padding; zeros for a text that has none."""
    counted = real.unsqueeze(2).to(x.dtype)
    return (x * counted).sum(1) / counted.sum(1).clamp(min=1)


def minilm() -> Transformer:
    """Return all-MiniLM-L6-v2 (Wang et al. 2020, "MiniLM"; Reimers and Gurevych 2019) with an untrained classifier.

    Its weights are fetched on first use (`fetching.fetch("minilm")`, 84 MB, Apache-2.0). The pieces' numbers are the
    course's: 0 is the unknown one and 1 padding (`data.pieces.words`). The vectors of the pieces, half of the
    parameters, are frozen: fine-tuning leaves them as they are.

    Raises fetching.SourceError if the weights are neither cached nor to be had.
    """
    from safetensors.torch import load_file

    from helpers import fetching

    model = Transformer()
    model.load_state_dict(dict(_renamed(load_file(fetching.fetch("minilm") / "model.safetensors"))), strict=False)
    model.embedding.weight.requires_grad_(False)
    return model


_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "norm2",
}


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield BERT's parameters under this module's names: the vector of "first sentence" joins those of the places."""
    from helpers.data.pieces import order

    vectors = state["embeddings.word_embeddings.weight"]
    yield "embedding.weight", vectors[torch.tensor(order(len(vectors)))]
    yield (
        "position.weight",
        state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0],
    )
    yield from ((f"norm.{kind}", state[f"embeddings.LayerNorm.{kind}"]) for kind in ("weight", "bias"))
    for name, tensor in state.items():
        if name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            module, _, kind = rest.rpartition(".")
            yield f"layers.{number}.{_NAMES[module]}.{kind}", tensor
