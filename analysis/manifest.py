"""What a run was made with: settings, seeds, versions, weights, data, and how far it got.

Takes plain values; gives a dictionary for ``manifest.json``. Knows no method.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.ft2font
import torch

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "captum", "safetensors", "numpy", "scipy", "pandas", "matplotlib",
    "scikit-image", "scikit-learn",
)  # fmt: skip


SOURCES = ("analysis", "attribution", "data_synth")


def versions() -> dict[str, str]:
    """Versions of Python, FreeType and the packages that results can depend on."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    found["freetype"] = str(matplotlib.ft2font.__freetype_version__)
    return found


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has changes; empty outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {}
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", *SOURCES],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "dirty": bool(changed)}


def device_name(device: str) -> str:
    """A device in words."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def manifest(
    *, settings: dict[str, Any], model: dict[str, Any], data: dict[str, Any], device: str, done: int, total: int
) -> dict[str, Any]:
    """The record of a run."""
    return {
        "command": ["python", "-m", "analysis.compare", *sys.argv[1:]],
        "settings": settings,
        "model": model,
        "data": data,
        "pictures": {"done": done, "total": total},
        "device": device_name(device),
        "versions": versions(),
        "git": git_state(),
    }
