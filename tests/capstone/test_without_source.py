"""Packed networks of the course, judged without source, in the real sandbox."""

import pytest
import torch

from helpers import files, nets
from helpers.capstone import asking
from helpers.data import Split


def text_network(encoder):
    return nets.TextNet(encoder(6, 5), 5, words=4, dimensions=6)


OF_THE_COURSE = {
    "cifarnet": lambda: nets.CifarNet((4, 4, 4, 4)),
    "resnet18": lambda: nets.resnet18(classes=2),
    "bag": lambda: nets.TextBag(words=4, dimensions=6),
    "rnn": lambda: text_network(nets.RNN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_COURSE)
def test_a_packed_network_of_the_course_is_asked_without_source(name, tmp_path):
    """In a real sandbox: what loading it imports is no trick of a student's."""
    torch.manual_seed(0)
    network = OF_THE_COURSE[name]().eval()
    is_text = not hasattr(network, "stem") and hasattr(network, "embedding")
    words = ["<unk>", "<pad>", "good", "bad"] if is_text else []
    packed = files.write_sparse(network, tmp_path / "net.pack", words=words)
    shape = () if is_text else (3, 32, 32)
    classes = 10 if name == "cifarnet" else 2
    inputs = ["good bad"] * 20 if is_text else torch.randn(20, *shape)
    split = Split(inputs, torch.arange(20) % classes)
    answers = asking.ask(packed.path.read_bytes(), "", split, classes=classes, shape=shape, export=not is_text)
    assert answers.own_numbers == 0 and bool(answers.graph) is not is_text
