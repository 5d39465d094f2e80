"""OpenVINO opens the same files, and computes float32 in float32 unless told otherwise."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import data, nets, quantization, runtime, training
from helpers.runtime import openvino

IMAGES = torch.randn(130, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nets.cifar_small().eval()


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    return runtime.export_onnx(net, IMAGES[:2], tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [None, 5])
def test_it_answers_as_pytorch_does(threads, batch, net, file):
    found = openvino.opened(file, threads=threads, batch=batch)(IMAGES[:5].numpy())
    wanted = training.predict(net, IMAGES[:5]).numpy()
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())


def test_an_answer_stays_when_the_next_one_is_asked_for(file):
    answers = openvino.opened(file)
    first = answers(IMAGES[:1].numpy())
    kept = first.copy()
    answers(IMAGES[1:2].numpy())
    assert np.array_equal(first, kept)


def test_bfloat16_is_rounded_more_coarsely_than_float32(net, file):
    wanted = training.predict(net, IMAGES).numpy()
    found = {p: openvino.opened(file, precision=p)(IMAGES.numpy()) for p in openvino.PRECISIONS}
    errors = {precision: np.abs(logits - wanted).max() / np.abs(wanted).max() for precision, logits in found.items()}
    assert errors["float32"] < 1e-5
    low, high = (1e-4, 0.05) if openvino.multiplies_bfloat16() else (0, 1e-5)
    assert low <= errors["bfloat16"] < high


def test_integers_give_the_answers_that_onnx_runtime_gives(net, tmp_path):
    folded = runtime.export_onnx(quantization.fold_batchnorm(net, IMAGES[:2]), IMAGES[:2], tmp_path / "folded.onnx")
    calibration = data.Split(IMAGES, torch.zeros(len(IMAGES), dtype=torch.long))
    int8 = runtime.quantize_static(folded, calibration, tmp_path / "int8.onnx")
    found, other = openvino.opened(int8)(IMAGES.numpy()), runtime.run(runtime.session(int8), IMAGES.numpy())
    assert np.abs(found - other).max() < 0.05 * np.abs(other).max()


def test_bad_input_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match="threads=0"):
        openvino.opened(file, threads=0)
    with pytest.raises(ValueError, match="precision='float16' is unknown; allowed"):
        openvino.opened(file, precision="float16")
    with pytest.raises(FileNotFoundError):
        openvino.opened(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="is not a model that OpenVINO can read"):
        openvino.opened(tmp_path / "bad.onnx")
    answers = openvino.opened(file, batch=2)
    for inputs in (IMAGES[:3].numpy(), IMAGES[:2].double().numpy(), IMAGES[:2, :1].numpy()):
        with pytest.raises(ValueError, match="cannot be computed; allowed: .*float32.* "):
            answers(inputs)
