"""What the tests of the judge share: ten patterns, a network that knows them, and a sandbox that starts at once."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import torch
from torch import nn

from helpers.capstone import answering, sandbox
from helpers.data import Split

# Ten patterns and some noise: digits that a linear layer can tell apart.
GENERATOR = torch.Generator().manual_seed(0)
PATTERNS = torch.randn(10, 1, 28, 28, generator=GENERATOR)
LABELS = torch.arange(300) % 10
EXAMPLES = Split(PATTERNS[LABELS] + 0.3 * torch.randn(300, 1, 28, 28, generator=GENERATOR), LABELS)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


def answering_network() -> Linear:
    """The network whose rows are the patterns: right without any training."""
    network = Linear()
    with torch.no_grad():
        network.fc.weight.copy_(PATTERNS.flatten(1) / 784)
        network.fc.bias.copy_(-PATTERNS.flatten(1).square().sum(1) / (2 * 784))
    return network


class Forked:
    """Looks like a process of `subprocess`, and is this one, forked: it need not import PyTorch again."""

    def __init__(self, work, folder):
        read, self_write = os.pipe()
        self_read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12
            self.pid = os.fork()
        if self.pid == 0:
            sys.dont_write_bytecode = True  # as in a real one; else what is imported late is written, and is forbidden
            try:
                os.setsid()
                os.close(self_write), os.close(self_read)
                os.chdir(folder)
                work(os.fdopen(read, "rb"), os.fdopen(write, "wb"))
            finally:
                os._exit(0)
        os.close(read), os.close(write)
        self.stdin, self.stdout, self.code = os.fdopen(self_write, "wb"), os.fdopen(self_read, "rb"), None
        self.lock = threading.Lock()  # the timer's thread waits as well, and a process ends for one of them only

    def wait(self, timeout=60):
        ends = time.monotonic() + timeout
        while self.code is None and time.monotonic() < ends:
            with self.lock:
                if self.code is None:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                    self.code = os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.001)
        if self.code is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        return self.code

    def kill(self):
        with self.lock:
            if self.code is None:
                os.kill(self.pid, signal.SIGKILL)


def fork_instead(monkeypatch, work=None):
    """Let every sandbox be this process, forked, which runs `work(requests, replies)`, by default what it should."""

    def started(kind, walls, folder):
        return Forked(work or (lambda requests, replies: answering.main(kind, requests, replies)), folder)

    monkeypatch.setattr(sandbox, "WALLS", {})
    monkeypatch.setattr(sandbox, "_started", started)


def share_right(logits, examples=EXAMPLES) -> float:
    return float((logits.argmax(1) == np.asarray(examples.labels)).mean())
