"""Quantization: grids, codebooks, groups and GPTQ, whole networks, BatchNorm folding."""

from helpers.quantization.codebooks import fit_table, kmeans_table, nearest, powers_of_two, share_weights
from helpers.quantization.folding import fold_batchnorm
from helpers.quantization.grids import (
    BITS,
    METHODS,
    Grid,
    affine_grid,
    code_range,
    dequantize,
    fake_quantize,
    find_grid,
    quantize,
)
from helpers.quantization.groups import (
    Groups,
    dequantize_groups,
    gptq,
    input_products,
    quantize_groups,
    quantize_linears,
)
from helpers.quantization.layers import FakeQuantize, bits_by_layer, is_quantizer
from helpers.quantization.networks import (
    bake,
    input_grids,
    quantize_model,
    sample_inputs,
    weight_grids,
    with_input_grids,
)

__all__ = [
    "BITS",
    "METHODS",
    "FakeQuantize",
    "Grid",
    "Groups",
    "affine_grid",
    "bake",
    "bits_by_layer",
    "code_range",
    "dequantize",
    "dequantize_groups",
    "fake_quantize",
    "find_grid",
    "fit_table",
    "fold_batchnorm",
    "gptq",
    "input_grids",
    "input_products",
    "is_quantizer",
    "kmeans_table",
    "nearest",
    "powers_of_two",
    "quantize",
    "quantize_groups",
    "quantize_linears",
    "quantize_model",
    "sample_inputs",
    "share_weights",
    "weight_grids",
    "with_input_grids",
]
