"""What several tests of `prediction` share."""

import numpy as np
from PIL import Image
from torch import nn

from helpers import nets


def lenet(first=20, second=50, hidden=500):
    net = nets.LeNet5()
    net.conv1, net.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 5)
    net.fc1, net.fc2 = nn.Linear(16 * second, hidden), nn.Linear(hidden, 10)
    return net


def digit(path, size=(28, 28), mode="L", **options):
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[size[1] // 4 : size[1] // 2, size[0] // 3 : size[0] // 2] = 255
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path
