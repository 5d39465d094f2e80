"""Export: the same logits for any batch, one clean file, no output; sessions with a fixed thread count."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from helpers import deploy, models, pruning, quantization

IMAGES = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet5()


@pytest.fixture(scope="module")
def exported(lenet, tmp_path_factory):
    return deploy.export_onnx(lenet, IMAGES[:1], tmp_path_factory.mktemp("deploy") / "lenet.onnx")


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_batch_gives_torchs_logits(lenet, exported, batch, threads):
    images = torch.randn(batch, 1, 28, 28)
    logits = deploy.run(deploy.session(exported, threads=threads), images.numpy())
    assert logits.shape == (batch, 10)
    assert logits.dtype == np.float32
    assert np.abs(logits - lenet(images).detach().numpy()).max() < 1e-5


def test_one_self_contained_file_without_the_exporters_notes(exported):
    assert list(exported.parent.iterdir()) == [exported]
    content = exported.read_bytes()
    assert 4 * 431_080 < len(content) < 4 * 431_080 + 5_000
    assert b"site-packages" not in content
    assert b".py" not in content
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "logits"]


def test_export_is_quiet_and_leaves_the_model_alone(tmp_path, capfd):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Dropout(0.9)).append(nn.Linear(4, 3)).train()
    model(IMAGES)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = deploy.export_onnx(model, IMAGES, tmp_path / "deep" / "down" / "bn.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    logits = deploy.run(deploy.session(path), IMAGES.numpy())
    assert np.allclose(logits, model.eval()(IMAGES).detach().numpy(), atol=1e-5)


def test_masks_are_applied(lenet, tmp_path):
    masked = pruning.mask(lenet, pruning.layer_masks(lenet, 0.9))
    path = deploy.export_onnx(masked, IMAGES, tmp_path / "masked.onnx")
    assert "Mul" not in {node.op_type for node in onnx.load(path).graph.node}
    found = deploy.run(deploy.session(path), IMAGES.numpy())
    assert np.abs(found - masked(IMAGES).detach().numpy()).max() < 1e-5
    assert pruning.masks_of(masked)


WRONG = {
    "off": lambda logits: logits + 0.01,
    "nan": lambda logits: logits * np.nan,
    "short": lambda logits: logits[:, :9],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_with_other_answers_is_not_written(lenet, exported, tmp_path, monkeypatch, kind):
    path, honest = tmp_path / "old.onnx", deploy.run
    path.write_bytes(b"what was here before")
    monkeypatch.setattr(deploy, "_export", lambda model, example: exported.read_bytes())
    monkeypatch.setattr(deploy, "run", lambda session, inputs: WRONG[kind](honest(session, inputs)))
    with pytest.raises(deploy.DeployError, match="logits"):
        deploy.export_onnx(lenet, IMAGES, path)
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_another_batch_size_is_checked_too(lenet, exported, tmp_path, monkeypatch):
    """A graph that answers only the batch it was traced with fails the reader who has one image."""
    honest = deploy.run
    monkeypatch.setattr(deploy, "_export", lambda model, example: exported.read_bytes())
    monkeypatch.setattr(deploy, "run", lambda s, x: honest(s, x) if len(x) > 1 else honest(s, x) + 1)
    with pytest.raises(deploy.DeployError, match="differ"):
        deploy.export_onnx(lenet, IMAGES, tmp_path / "fixed.onnx")


@pytest.mark.parametrize("arguments", [{"example": IMAGES[:0]}, {"example": IMAGES, "check_inputs": IMAGES[:0]}])
def test_nothing_to_check_with_is_refused(lenet, tmp_path, arguments):
    with pytest.raises(ValueError, match="is empty; allowed"):
        deploy.export_onnx(lenet, path=tmp_path / "x.onnx", **arguments)


def test_sessions_use_the_threads_they_are_given(exported):
    for threads in (1, 2):
        options = deploy.session(exported, threads=threads).get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(ValueError, match="threads=0"):
        deploy.session(exported, threads=0)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_what_is_no_onnx_model_is_said_in_one_sentence(exported, tmp_path, capfd, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(exported.read_bytes()[:9_000] if content is None else content)
    with pytest.raises(ValueError, match="bad.onnx' is not a model that ONNX Runtime can read") as error:
        deploy.session(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        deploy.session(tmp_path / "none.onnx")


# ---------------------------------------------------------------- BatchNorm folded, and other weights in the same graph


def trained_batchnorm(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics, scale and shift that folding must not lose; return it in evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3)
    return model.eval()


def cifar(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    return trained_batchnorm(models.CifarNet(widths, classes=3))


PHOTOS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory):
    wide = quantization.fold_batchnorm(cifar(8, 12, 16, 20), PHOTOS)
    return deploy.export_onnx(wide, PHOTOS, tmp_path_factory.mktemp("graph") / "wide.onnx")


def test_the_graph_of_one_network_runs_anothers_weights(wide_graph, tmp_path):
    content, model = wide_graph.read_bytes(), cifar(3, 5, 7, 9)
    path = deploy.export_like(
        quantization.fold_batchnorm(model, PHOTOS), wide_graph, PHOTOS, tmp_path / "deep" / "narrow.onnx"
    )
    for batch in (1, 3):
        found = deploy.run(deploy.session(path), PHOTOS[:batch].numpy())
        assert np.allclose(found, model.eval()(PHOTOS[:batch]).detach().numpy(), atol=1e-4)
    weights = sum(np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)
    assert weights < 1.1 * sum(parameter.numel() for parameter in model.parameters())
    assert wide_graph.read_bytes() == content


def test_another_networks_graph_is_refused(wide_graph, tmp_path, lenet):
    with pytest.raises(ValueError, match=r"wide.onnx' has no 'conv1.bias'; allowed: a network of the same layers"):
        deploy.export_like(lenet, wide_graph, IMAGES, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="has no 'conv1.bn.bias'"):
        deploy.export_like(cifar(3, 5, 7, 9), wide_graph, PHOTOS, tmp_path / "x.onnx")
    deeper = quantization.fold_batchnorm(cifar(3, 5, 7, 9), PHOTOS)
    deeper.pool = nn.Sequential(deeper.pool, nn.ReLU6())  # no weights of its own, but another answer
    with pytest.raises(deploy.DeployError, match="ONNX Runtime's logits"):
        deploy.export_like(deeper, wide_graph, PHOTOS * 50, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="example is empty"):
        deploy.export_like(deeper, wide_graph, PHOTOS[:0], tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
