"""LeNet-5, LeNet-300-100 and perceptrons, for MNIST."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """The 20-50-500-10 network of the pruning literature: 431,080 parameters, 2,293,000 MACs per image.

    Caffe's variant of LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"):
    more filters than the original, max-pooling instead of trained subsampling, ReLU in the convolutional part too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units: 266,610 parameters (LeCun et al. 1998, section III.C)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = F.relu(self.fc1(images.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class MLP(nn.Module):
    """784-units-units-10 with ReLU; in training `dropout` is the share of the hidden units that is left out.

    The networks of Hinton et al. 2015, "Distilling the knowledge in a neural network", section 3.
    """

    def __init__(self, units: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, units)
        self.fc2 = nn.Linear(units, units)
        self.fc3 = nn.Linear(units, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = self.dropout(F.relu(self.fc1(images.flatten(1))))
        return self.fc3(self.dropout(F.relu(self.fc2(x))))


def lenet5() -> LeNet5:
    """Return an untrained LeNet-5, initialised from PyTorch's global random state."""
    return LeNet5()


def lenet_300_100() -> LeNet300100:
    """Return an untrained LeNet-300-100, initialised from PyTorch's global random state."""
    return LeNet300100()


def mlp_800() -> MLP:
    """Return Hinton's student, untrained: 1,276,810 parameters."""
    return MLP(800)


def mlp_1200() -> MLP:
    """Return Hinton's teacher, untrained: 2,395,210 parameters, half of the hidden units dropped in training."""
    return MLP(1200, dropout=0.5)
