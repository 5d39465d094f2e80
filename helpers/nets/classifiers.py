"""Text classifiers: bags of embeddings, convolutions, recurrent networks."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core.vocabulary import PAD


def without_padding(tokens: Int64[Tensor, "batch padded"]) -> Int64[Tensor, "batch length"]:
    """Return the tokens without the columns at the end in which every text is padding, but never without the first.

    It saves time and changes no answer. An exported graph cannot do it: how much is left depends on the texts.
    """
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return tokens
    used = (tokens != PAD).any(0).nonzero()
    return tokens[:, : int(used[-1]) + 1] if len(used) else tokens[:, :1]


@torch.no_grad()
def _start_small(embedding: nn.Embedding | nn.EmbeddingBag) -> None:
    """Draw the word vectors from N(0, 0.1²), that of padding zero.

    PyTorch draws them from N(0, 1): training moves a rare word little, so the noise that it began with would decide its
    length, and be most of what a decomposition of the embedding finds.
    """
    embedding.weight.normal_(std=0.1)
    embedding.weight[PAD] = 0


class TextBag(nn.Module):
    """The mean of a text's word vectors, then one hidden layer: the order of the words plays no part.

    With 10,002 words of 100 numbers it is the network of many a tutorial: 98 % of its 1,020,802 parameters are
    the embedding (Joulin et al. 2017, "Bag of tricks for efficient text classification", without the hidden layer).
    """

    def __init__(self, words: int = 10_002, *, dimensions: int = 100, hidden: int = 200, classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(words, dimensions, mode="mean", padding_idx=PAD)
        _start_small(self.embedding)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(dimensions, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Return the logits; padding does not count in the mean."""
        mean = self.embedding(without_padding(tokens))
        return self.fc2(F.relu(self.fc1(self.dropout(mean))))


class RNN(nn.Module):
    """A plain recurrent layer, h_t = tanh(W x_t + U h_(t-1) + b) (Elman 1990), run by PyTorch's own kernel.

    Its two matrices are the weights of two linear layers, `input` (W) and `recurrent` (U), which can be masked like any
    other: `nn.RNN` keeps a list of its own of its parameters, and with masks it can no longer be copied once used.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, units)
        self.recurrent = nn.Linear(units, units)
        nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return the state after each step, from a state of zeros."""
        start = x.new_zeros(1, x.shape[0], self.recurrent.in_features)
        states, _ = torch.rnn_tanh(x, start, _recurrent_weights(self), True, 1, 0.0, self.training, False, True)
        return states


class LSTM(nn.Module):
    """A layer of long short-term memory (Hochreiter and Schmidhuber 1997), made of two linear layers as `RNN` is.

    The rows of both are four blocks: input gate, forget gate, candidate, output gate, as in `nn.LSTM`.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return the hidden state after each step, from states of zeros."""
        start = x.new_zeros(1, x.shape[0], self.recurrent.in_features)
        weights = _recurrent_weights(self)
        states, _, _ = torch.lstm(x, (start, start), weights, True, 1, 0.0, self.training, False, True)
        return states


def _recurrent_weights(layer: RNN | LSTM) -> list[Tensor]:
    return [layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias]


class TextCNN(nn.Module):
    """Filters over three neighbouring words, then ReLU (Kim 2014, with one width only).

    "Convolutional neural networks for sentence classification", section 2.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, units, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return what the filters see around each word."""
        return F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)


class TextNet(nn.Module):
    """Word vectors, an encoder that reads them in order, the maximum over the words, and a linear classifier.

    `encoder` maps (batch, length, dimensions) to (batch, length, units). Only the first `max_tokens` tokens are read.
    Padding stands at the end, where an encoder that reads forwards has not seen it yet, and it is left out of the
    maximum; so it changes nothing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        units: int,
        words: int = 10_002,
        *,
        dimensions: int = 100,
        max_tokens: int = 250,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(words, dimensions, padding_idx=PAD)
        _start_small(self.embedding)
        self.dropout = nn.Dropout(0.3)
        self.encoder = encoder
        self.fc = nn.Linear(units, classes)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        tokens = without_padding(tokens[:, : self.max_tokens])
        states = self.encoder(self.dropout(self.embedding(tokens)))
        nothing = max(-1e9, torch.finfo(states.dtype).min)
        strongest = states.masked_fill((tokens == PAD)[:, :, None], nothing).amax(1)
        return self.fc(self.dropout(strongest))


def imdb_bag() -> TextBag:
    """Return an untrained bag of embeddings: 20,400 weights beside its embedding."""
    return TextBag()


def imdb_bigrams() -> TextBag:
    """Return an untrained bag of 62,500 words and pairs with 16 numbers each: as many parameters as `imdb_bag`."""
    return TextBag(62_502, dimensions=16)


def imdb_cnn() -> TextNet:
    """Return an untrained convolutional text classifier: 19,328 weights beside its embedding."""
    return TextNet(TextCNN(100, 64), 64)


def imdb_rnn() -> TextNet:
    """Return an untrained recurrent text classifier: 20,200 weights beside its embedding."""
    return TextNet(RNN(100, 100), 100)


def imdb_lstm() -> TextNet:
    """Return an untrained LSTM text classifier: 19,656 weights beside its embedding."""
    return TextNet(LSTM(100, 36), 36)
