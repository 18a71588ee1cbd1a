"""What a device can do, as far as a run depends on it.

Takes a torch device; asks torch, or the system where torch does not tell. Knows no model.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # x86 and Arm, as /proc/cpuinfo spells them


def bfloat16_is_native(device: torch.device) -> bool:
    """Does the device multiply bfloat16 itself, rather than by way of float32?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not CPU_INFO.exists():
        return False
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
    return bool(flags and BFLOAT16_FLAGS & set(flags.group(1).split()))
