"""What holds for all tests, nbval's included: notebook kernels that start side by side do not take each other's ports.

Jupyter picks a kernel's ports, frees them, and the kernel binds them a second later. Meanwhile the system may hand one
of them to any other process that asks for whichever port is free. So each test process has ports of its own here, from
a range that systems give out only to those who name a port.
"""

import os
import socket
from itertools import cycle

from jupyter_client.provisioning.local_provisioner import LocalPortCache

FIRST, LAST, EACH = 20_000, 32_000, 100  # Linux hands out ports from 32,768 on, macOS and Windows from 49,152


def own_ports(process: int) -> range:
    """Return the ports of a process; those of neighbouring process numbers do not overlap."""
    first = FIRST + process * EACH % (LAST - FIRST)
    return range(first, first + EACH)


def pytest_configure() -> None:
    """Give this process its own ports for the kernels it starts."""
    ports = cycle(own_ports(os.getpid()))

    def find_available_port(self: LocalPortCache, ip: str) -> int:
        return next(port for port in ports if _is_free(ip, port))

    LocalPortCache.find_available_port = find_available_port  # type: ignore[method-assign]


def _is_free(ip: str, port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind((ip, port))
        except OSError:
            return False
    return True
