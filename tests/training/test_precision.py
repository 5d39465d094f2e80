"""Tests of `helpers.training.precision`."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import nets, training
from helpers.training import precision


def test_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "meta")
    assert training.device() == torch.device("meta")
    for wrong in ("gpu", "cuda:99"):
        monkeypatch.setenv("COURSE_DEVICE", wrong)
        with pytest.raises(ValueError, match=f"COURSE_DEVICE='{wrong}'; allowed"):
            training.device()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("COURSE_DEVICE", "cuda:1")
    assert training.device() == torch.device("cuda", 1)
    monkeypatch.setenv("COURSE_DEVICE", "cuda:2")
    with pytest.raises(ValueError, match="COURSE_DEVICE='cuda:2'; allowed here: 'cpu', and 2 GPUs"):
        training.device()
    monkeypatch.delenv("COURSE_DEVICE")
    for gpus, expected in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert training.device() == torch.device(expected)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [((4, 4), 3, 1, 1), ((2, 2), 1, 2, 0), ((5, 4), 3, (2, 1), (1, 0)), ((7, 6), (3, 2), (2, 3), (1, 2))],
)
def test_in_bfloat16_small_maps_are_products_and_large_ones_stay(size, window, stride, padding):
    layer = nn.Conv2d(5, 7, window, stride=stride, padding=padding).double()
    small, large = torch.randn(3, 5, *size).double(), torch.randn(3, 5, 40, 40).double()
    with precision._SmallMapsAsProducts(), torch.profiler.profile() as spy:
        found = layer(small)
        found.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters()]
    assert not any("convolution" in event.name for event in spy.events())
    layer.zero_grad()
    layer(small).square().sum().backward()
    torch.testing.assert_close(found, layer(small))
    torch.testing.assert_close(gradients, [parameter.grad for parameter in layer.parameters()])
    with precision._SmallMapsAsProducts(), torch.profiler.profile() as spy:
        layer(large)
    assert any("convolution" in event.name for event in spy.events())


def test_in_bfloat16_what_is_no_plain_convolution_is_left_to_pytorch():
    images = torch.randn(2, 4, 4, 4)
    for layer in (
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ):
        with precision._SmallMapsAsProducts():
            found = layer(images)
            one = layer(images[0])  # without a batch
        torch.testing.assert_close(found, layer(images))
        torch.testing.assert_close(one, layer(images[0]))


def test_products_are_laid_out_as_convolutions_are():
    plain, last = torch.contiguous_format, torch.channels_last
    for of_weight, of_images in ((plain, plain), (plain, last), (last, plain), (last, last)):
        layer = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=of_weight)
        images = torch.randn(2, 3, 4, 4).contiguous(memory_format=of_images)
        with precision._SmallMapsAsProducts():
            assert layer(images).stride() == nn.Conv2d.forward(layer, images).stride()
        assert layer(images).stride() == precision._as_product(images, layer.weight, None, (1, 1), (1, 1)).stride()


def test_products_leave_what_they_do_not_know_and_what_cannot_be_to_pytorch():
    images, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    expected = F.conv2d(images, weight, None, 1, 1)
    with precision._SmallMapsAsProducts():
        found = torch.conv2d(images, weight, None, 1, 1, (1, 1), 1)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            nn.Conv2d(3, 5, 5)(images)
    assert torch.equal(found, expected)


AMX = {"amx_bf16": True, "avx512_bf16": True}
AVX512 = {"amx_bf16": False, "avx512_bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "limit", "seconds", "expected"),
    [
        (AMX, "", None, "bfloat16"),
        (AMX, "AVX512_CORE_BF16", (2.0, 1.0), "bfloat16"),
        (AMX, "AVX2", (1.0, 4.0), "float32"),
        (AVX512, "", (2.6, 1.0), "bfloat16"),  # an AMD EPYC
        (AVX512, "", (0.8, 1.0), "float32"),  # an Intel Xeon without its AMX
        ({"bf16": True}, "", (1.5, 1.0), "bfloat16"),  # Arm
        ({"bf16": True}, "", (1.05, 1.0), "float32"),
        ({"avx2": True, "bf16": False}, "", None, "float32"),
    ],
)
def test_the_fast_precision_is_what_the_cpu_can_and_else_what_a_trial_says(
    monkeypatch, capabilities, limit, seconds, expected
):
    trials = []

    def trial():
        trials.append(seconds)
        return dict(zip(("float32", "bfloat16"), seconds, strict=True))

    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "_seconds_of_a_step", trial)
    assert training.fast_precision() == expected
    assert training.fast_precision() == expected
    assert len(trials) == (seconds is not None), "the trial is remembered"


def test_a_trial_is_remembered_per_machine_and_done_again_where_its_file_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path))
    monkeypatch.setattr(precision, "_seconds_of_a_step", lambda: {"float32": 2.0, "bfloat16": 1.0})
    assert precision._faster_here("this machine") == "bfloat16"
    monkeypatch.setattr(precision, "_seconds_of_a_step", lambda: {"float32": 1.0, "bfloat16": 1.0})
    assert precision._faster_here("that machine") == "float32"
    assert precision._faster_here("this machine") == "bfloat16"
    file = tmp_path / "precision.json"
    assert json.loads(file.read_text()) == {"this machine": "bfloat16", "that machine": "float32"}
    for damaged in ("", "[3]", "null", "{}", '{"this machine": "float8"}', '{"this machine": ["a"]}'):
        file.write_text(damaged)
        assert precision._faster_here("this machine") == "float32"
    file.unlink()
    file.mkdir()
    assert precision._faster_here("this machine") == "float32"


def test_a_trial_times_both_precisions_and_draws_nothing():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    seconds = precision._seconds_of_a_step(rounds=1)
    assert torch.equal(torch.rand(2), expected)
    assert set(seconds) == set(training.PRECISIONS) and all(0 < value < 100 for value in seconds.values())


@pytest.mark.parametrize(("pause", "rounds"), [(0.1, 6), (1.0, 3)])
def test_a_trial_takes_six_rounds_and_on_a_busy_machine_three(monkeypatch, pause, rounds):
    """A clock that goes on by `pause` whenever it is read: at its start, twice in a step, once in a round after two."""
    ticks = itertools.count()
    monkeypatch.setattr(nets, "cifar_base", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)))
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: pause * next(ticks)))
    assert list(precision._seconds_of_a_step().values()) == pytest.approx([pause, pause])
    assert next(ticks) == 1 + 4 * rounds + (rounds - 2)


def test_in_bfloat16_what_is_no_float_stays_as_it_is():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.fc(x), "classes": (self.fc(x).argmax(1), None), "name": "linear", "scale": 2}

    with precision.computing_in(torch.bfloat16, net := Several()):
        found = net(torch.randn(4, 3))
    assert found["logits"].dtype == torch.float32 and found["classes"][0].dtype == torch.int64
    assert (found["classes"][1], found["name"], found["scale"]) == (None, "linear", 2)


def test_the_fast_precision_of_a_gpu_is_its_own_word(monkeypatch):
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda"))
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, has=has: has)
        assert training.fast_precision() == ("bfloat16" if has else "float32")


def test_the_trial_runs_wherever_it_is_asked_for():
    """Also inside `torch.inference_mode`, where a network is only asked."""
    with torch.inference_mode():
        assert precision._seconds_of_a_step(rounds=1).keys() == precision.PRECISIONS.keys()
