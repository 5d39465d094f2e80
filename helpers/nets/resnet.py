"""ResNet-18, as torchvision builds it, for small images."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet, ResNet18_Weights

from helpers.core import checks
from helpers.fetching import SourceError


class ResNet18(ResNet):
    """torchvision's ResNet-18 (He et al. 2016, section 4.1), which enlarges its images to `pixels` × `pixels` first.

    Made for photographs of 224 pixels, the network halves height and width five times: of 32 pixels one would be left
    long before its last layers, of 64 there are 2 × 2. The network enlarges, not the dataset: that keeps four times
    fewer numbers in memory, and augmentation, export and every helper take the small images as they are. The layers,
    their names and those in the `state_dict` are torchvision's; 148 million MACs at 64 pixels.
    """

    def __init__(self, classes: int = 8, *, pixels: int = 64) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=checks.positive("classes", classes))
        self.pixels = checks.positive("pixels", pixels)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of images of any size."""
        size = (self.pixels, self.pixels)
        return super().forward(F.interpolate(images, size=size, mode="bilinear", align_corners=False))


def resnet18(*, classes: int = 8) -> ResNet18:
    """Return an untrained ResNet-18: 11,176,512 parameters and 513 for each class."""
    return ResNet18(classes)


def imagenet_resnet18() -> ResNet18:
    """Return a ResNet18 with torchvision's ImageNet weights, in evaluation mode; SourceError if that fails."""
    new, weights = ResNet18(1_000), ResNet18_Weights.IMAGENET1K_V1
    try:
        new.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # of any class: a damaged file is stumbled over in many ways
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise SourceError(
            f"source='imagenet' failed ({type(error).__name__}: {str(error).partition(chr(10))[0]}). Put {weights.url} "
            f"into {folder}, in place of what is there under that name, or use source='course'"
        ) from error
    return new.eval()
