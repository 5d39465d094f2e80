"""Which tools the course looks at, in which versions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """A tool: its title, what pip installs, and the module of this room that drives it, the course's name for it.

    `networks` are those that it is tried with; a tool that converts slowly gets one.
    """

    title: str
    requirements: tuple[str, ...]
    networks: tuple[str, ...] = ("cifar_base",)


ALL = ("cifar_base", "cifar_small", "lenet5", "resnet18", "imdb_lstm", "imdb_bag")

TOOLS = {
    "onnxruntime": Tool("ONNX Runtime", (), ("cifar_base", "lenet5")),
    "openvino": Tool("OpenVINO and NNCF", ("openvino==2026.4.1", "nncf==3.4.0"), ("cifar_base", "lenet5", "imdb_bag")),
    "litert": Tool("LiteRT", ("ai-edge-litert==2.3.0", "litert-torch==0.10.0"), ("cifar_base", "lenet5")),
    "torchao": Tool("torchao, PT2E", ()),
    "brevitas": Tool("Brevitas", ("brevitas==0.13.4", "onnxoptimizer==0.4.2")),
    "aimet": Tool("AIMET", ("aimet-torch==2.42.0",)),
    "mct": Tool("Model Compression Toolkit", ("model-compression-toolkit==2.6.1",)),
    "neural_compressor": Tool("Intel Neural Compressor", ("neural-compressor[pt]==3.10",)),
    "modelopt": Tool("NVIDIA ModelOpt", ("nvidia-modelopt==0.47.0", "requests==2.34.2", "huggingface_hub==2.4.0")),
    "executorch": Tool("ExecuTorch, XNNPACK", ("executorch==1.5.1",), ("cifar_base", "lenet5")),
    "ncnn": Tool("ncnn and pnnx", ("ncnn==1.0.20261020", "pnnx==20261020")),
    "iree": Tool("IREE", ("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0")),
    "tvm": Tool("Apache TVM", ("apache-tvm==0.27.0.post1",)),
}
