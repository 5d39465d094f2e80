"""Tests of `helpers.quantization.codebooks`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from helpers import nets, quantization
from helpers.quantization import find_grid
from tests.quantization.quantization_examples import (
    assert_same_state,
    numbers,
    squared_error,
    state_of,
    tensors,
    values_of,
)


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nets.lenet5().eval()


@settings(max_examples=25, deadline=None)
@given(array=tensors, table=st.lists(numbers, min_size=1, max_size=9, unique=True))
def test_nearest_is_nearest(array, table):
    entries, x = torch.tensor(sorted(table)), torch.from_numpy(array)
    found = entries[quantization.nearest(x, entries)]
    for value, mine in zip(x.flatten().tolist(), found.flatten().tolist(), strict=True):
        best = min(abs(value - entry) for entry in entries.tolist())
        assert abs(value - mine) <= best + 1e-3 * max(1.0, best)  # in the middle either will do


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_entries_are_the_means_of_what_they_stand_for(bits):
    x = values_of(6, 3_000)
    table = quantization.kmeans_table(x, bits, iterations=1_000)
    places = quantization.nearest(x, table)
    assert len(table) == 2**bits and (table.diff() > 0).all()
    for place, entry in enumerate(table):
        assert torch.isclose(x[places == place].mean(), entry, atol=1e-4)
    uniform = squared_error(x, find_grid(x, bits, method="mse"))
    assert float((table[places] - x).square().sum()) < 0.95 * uniform


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_a_table_is_that_of_scikit_learn(bits):
    x = values_of(17, 2_000) ** 3
    ordered = x.double().unique()  # all 2,000 are different
    start = ordered[((torch.arange(2**bits) + 0.5) / 2**bits * 2_000).long()].numpy()[:, None]
    theirs = KMeans(2**bits, init=start, n_init=1, max_iter=20, tol=0).fit(ordered.numpy()[:, None])
    mine = quantization.kmeans_table(x, bits, iterations=20)
    assert np.allclose(mine.numpy(), np.sort(theirs.cluster_centers_[:, 0]), atol=1e-5)


def test_clusters_that_are_clear_are_found():
    x = torch.cat([values_of(seed, 100) * 0.01 + middle for seed, middle in enumerate([-3.0, 0.5, 1.0, 7.0])])
    assert torch.allclose(quantization.kmeans_table(x, 2), torch.tensor([-3.0, 0.5, 1.0, 7.0]), atol=0.01)


def test_few_different_values_are_the_table():
    x = torch.tensor([[2.0, -1.0, 2.0], [0.0, -1.0, 2.0]])
    assert quantization.kmeans_table(x, 2).tolist() == [-1, 0, 2]
    mostly_equal = torch.cat([torch.zeros(1_000), values_of(7, 20)])
    assert 2 <= len(quantization.kmeans_table(mostly_equal, 3)) <= 8


def test_powers_of_two():
    assert quantization.powers_of_two(2).tolist() == [-1, 0, 1]
    assert quantization.powers_of_two(3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    for bits in quantization.BITS:
        levels = quantization.powers_of_two(bits)
        assert len(levels) == 2**bits - 1 and (levels.diff() > 0).all()
        mantissas, _ = torch.frexp(levels[levels != 0].abs())
        assert (mantissas == 0.5).all()


def test_a_table_is_scaled_to_its_values():
    levels = quantization.powers_of_two(4)
    assert torch.equal(quantization.fit_table(3 * levels, levels), 3 * levels)
    x = values_of(8, 500)
    table = quantization.fit_table(x, levels)
    assert torch.allclose(table / table.max(), levels) and table.max() <= x.abs().max()


def test_shared_weights_are_entries_of_the_table(lenet):
    before, table = state_of(lenet), torch.tensor([-0.02, 0.0, 0.03])
    shared = quantization.share_weights(lenet, {"fc1": table})
    assert_same_state(lenet, before)
    assert shared.fc1.weight.unique().tolist() == table.tolist()
    assert ((shared.fc1.weight - lenet.fc1.weight).abs() <= (table[1] - lenet.fc1.weight).abs() + 1e-7).all()
    assert torch.equal(shared.fc2.weight, lenet.fc2.weight)
    with pytest.raises(ValueError, match="layer in tables='fc9' is unknown"):
        quantization.share_weights(lenet, {"fc9": table})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", quantization.METHODS)
def test_grids_of_half_precision_are_found_in_single(dtype, method):
    x = values_of(18, 4, 50).to(dtype)
    found, expected = (find_grid(each, 4, method=method, per_channel=True) for each in (x, x.float()))
    assert torch.equal(found.scale, expected.scale) and found.scale.dtype == torch.float32
    assert torch.equal(quantization.kmeans_table(x, 2), quantization.kmeans_table(x.float(), 2).to(dtype))


def test_a_table_moves_until_it_stands_unless_said_otherwise():
    x = values_of(24, 2_000)
    table = quantization.kmeans_table(x, 3)
    places = quantization.nearest(x, table)
    means = torch.stack([x[places == place].mean() for place in range(8)])
    once = quantization.kmeans_table(x, 3, iterations=1)
    assert float((table - means).abs().max()) < 0.1 * float((table - once).abs().max())
