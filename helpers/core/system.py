"""What this machine is, and which versions run on it. Standard library only."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

CODE = ("helpers", "notebooks/src", "pyproject.toml", "requirements.lock")  # what results depend on, of a clone


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    from importlib.metadata import version

    names = ["torch", "torchvision", "torchtext", "torchao", "torch-pruning"]
    names += ["numpy", "onnxruntime", "openvino", "pandas"]
    return {name: version(name) for name in names}


def commit(root: Path) -> str | None:
    """Return the commit of a clone, with "+" behind it if its code differs from it; None where git cannot say."""
    try:
        head, changes = (
            subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True, timeout=30).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *CODE])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + "+" * bool(changes.strip())


def machine() -> dict[str, str | int | float | bool | None]:
    """Return what measurements depend on: cpu, cores, threads, vnni, amx, gpu, memory_gb, os, python.

    `cores` are those that this process may use, `threads` those that torch does. `vnni` says that the CPU
    multiplies 8-bit integers natively: AVX-VNNI, AVX512-VNNI, or Arm's dot product. It is False where that
    cannot be read (Windows).
    """
    flags = _cpu_flags()
    threads, gpu = _torch_devices()
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": threads,
        "vnni": has_vnni(),
        "amx": "amx_int8" in flags,
        "gpu": gpu,
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def has_vnni() -> bool:
    """Return whether the CPU multiplies 8-bit integers natively; False where that cannot be read (Windows)."""
    return bool(_cpu_flags() & {"avx512_vnni", "avx_vnni", "asimddp"})


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; knows what a container or taskset allows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _torch_devices() -> tuple[int, str | None]:
    try:
        import torch
    except ImportError:
        return _cores(), None
    if torch.cuda.is_available():
        return torch.get_num_threads(), torch.cuda.get_device_name(0)
    return torch.get_num_threads(), "Apple MPS" if torch.backends.mps.is_available() else None


def _cpuinfo() -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo (Linux), an empty dict elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    first = text.split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    if platform.system() == "Darwin":
        return {"asimddp"} if _sysctl("hw.optional.arm.FEAT_DotProd") == "1" else set()
    info = _cpuinfo()
    return set((info.get("flags") or info.get("Features") or "").split())


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return _windows_memory_gb()
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _windows_memory_gb() -> float | None:
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    if not kernel.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes)):
        return None
    return round(kilobytes.value * 1024 / 1e9, 1)
