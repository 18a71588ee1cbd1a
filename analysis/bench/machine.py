"""The machine a measurement was made on: what it is, and how fast it multiplies large matrices.

Takes a device; gives a description for `machine.json`, free of names of hosts, users and paths, and rates. Knows no
model.
"""

from __future__ import annotations

import os
import platform
import re
import time
from typing import Any

import torch

from analysis.devices import CPU_INFO, bfloat16_is_native
from analysis.manifest import versions


def available_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where there is none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({str(error).splitlines()[0]})") from error
    return device


def describe_machine(device: torch.device) -> dict[str, Any]:
    """CPU, cores, threads, memory, system, versions, linear-algebra libraries and device."""
    build = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    return {
        "cpu": cpu_model(),
        "cores_available": cores_available(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "blas": blas.group(1) if blas else "unknown",
        "mkldnn": torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "bfloat16_native": bfloat16_is_native(device),
        "versions": versions(),
    }


def cores_available() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_model() -> str:
    """The processor in words, as the system tells it."""
    if CPU_INFO.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MatrixProduct:
    """A product of two random square matrices, ready to be timed. Calling it gives the seconds of one product."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
        self.out = torch.empty_like(self.left)
        self.gflop = 2 * size**3 / 1e9
        self()

    def __call__(self) -> float:
        start = time.perf_counter()
        torch.mm(self.left, self.right, out=self.out)
        synchronise(self.left.device)
        return time.perf_counter() - start
