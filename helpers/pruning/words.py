"""Smaller tables of words: rows removed, or a product of two matrices."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from helpers.core import checks
from helpers.pruning.masks import bake
from helpers.pruning.weights import EMBEDDINGS, layer_of, refuse_tied


def remove_words(model: nn.Module, keep: Bool[Tensor, " words"], counts: Tensor) -> nn.Module:
    """Return a smaller copy of a text classifier that knows only the words of `keep`; masks are folded in.

    Token numbers change with it: cut the list of words the same way (`[w for w, kept in zip(words, keep) if kept]`) and
    encode the texts again. The words that are gone become "<unk>", whose vector becomes the mean of all that it now
    stands for, weighted by `counts`: so the mean of a text stays about where it was.

    Args:
        model: has exactly one embedding, or exactly one with a padding_idx (a transformer's other one is of places).
        keep: True for each word that stays; "<unk>" and "<pad>", numbers 0 and 1, must.
        counts: how often each word occurs in the training texts, shape (words,); that of "<pad>" plays no part.

    Raises:
        ValueError: there is not one embedding, it shares its table with another layer, or it pads with another number;
            or `keep` or `counts` does not fit it.
    """
    new = bake(model)
    embedding = _embedding(new)
    if embedding.padding_idx not in (None, 0, 1):
        raise ValueError(f"the embedding's padding_idx is {embedding.padding_idx}; allowed: None, 0 or 1")
    if keep.dtype != torch.bool or keep.shape != embedding.weight.shape[:1] or not keep[:2].all():
        raise ValueError(
            f"keep has shape {tuple(keep.shape)} and begins with {keep[:2].tolist()}; "
            f"allowed: shape {tuple(embedding.weight.shape[:1])}, beginning with [True, True]"
        )
    if counts.shape != keep.shape:
        raise ValueError(f"counts has shape {tuple(counts.shape)}; allowed: {tuple(keep.shape)}")
    checks.finite("counts", counts)
    table = embedding.weight.detach().clone()
    unknown = counts * ~keep
    unknown[0] = counts[0]
    if unknown.any():
        table[0] = (unknown / unknown.sum()).to(table.dtype) @ table
    _replace_table(embedding, table[keep])
    return new


def factor_embedding(model: nn.Module, reader: str, rank: int) -> nn.Module:
    """Return a copy whose word vectors have `rank` numbers, by the singular value decomposition E ≈ U S V^T.

    U S becomes the new embedding, and V^T is multiplied into `reader`, the linear or convolutional layer that reads the
    word vectors (or their mean): the smaller network computes what the old one would with the closest matrix of that
    rank (Eckart and Young 1936). Masks are folded in.

    Raises:
        ValueError: there is not one embedding, `reader` does not read it, one of them shares a tensor with another
            layer, the embedding takes maxima or limits lengths, or `rank` is not from 1 to its dimensions.
    """
    new = bake(model)
    embedding, following = _embedding(new), layer_of(new, "reader", reader)
    refuse_tied(new, reader, following)
    words, dimensions = embedding.weight.shape
    if getattr(embedding, "mode", "mean") == "max" or embedding.max_norm is not None:
        raise ValueError("the embedding has mode='max' or max_norm, which no matrix does; allowed: sums and means")
    if following.weight.shape[1] != dimensions or getattr(following, "groups", 1) > 1:
        raise ValueError(
            f"reader={reader!r} takes {following.weight.shape[1]} inputs, but a word has {dimensions} numbers; "
            "allowed: the layer that reads the embedding"
        )
    checks.choice("rank", rank, range(1, min(words, dimensions) + 1))
    table = embedding.weight.detach()
    # V holds the eigenvectors of E^T E, which is small; in double precision, since forming it squares the condition.
    right = torch.linalg.eigh(table.double().T @ table.double()).eigenvectors.flip(1)[:, :rank].T.to(table.dtype)
    _replace_table(embedding, table @ right.T)  # U S, but with the exact zeros of padding
    weight = torch.einsum("oi...,ri->or...", following.weight.detach(), right)
    following.weight = nn.Parameter(weight.contiguous(), following.weight.requires_grad)
    attribute = "in_features" if isinstance(following, nn.Linear) else "in_channels"
    setattr(following, attribute, rank)
    return new


def _embedding(model: nn.Module) -> Any:
    every = {layer: name for name, layer in model.named_modules() if isinstance(layer, EMBEDDINGS)}
    found = {layer: name for layer, name in every.items() if len(every) == 1 or layer.padding_idx is not None}
    if len(found) != 1:
        raise ValueError(f"model has {len(every)} embeddings; allowed: exactly one, or exactly one with padding")
    [(embedding, name)] = found.items()
    refuse_tied(model, name, embedding)
    return embedding


def _replace_table(embedding: Any, table: Float[Tensor, "words dimensions"]) -> None:
    embedding.weight = nn.Parameter(table.clone(), embedding.weight.requires_grad)
    embedding.num_embeddings, embedding.embedding_dim = table.shape
