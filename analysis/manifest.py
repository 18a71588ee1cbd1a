"""What a run was made with: settings, seeds, versions, weights, data, and how far it got.

Takes plain values; gives a dictionary for ``manifest.json``, and reads one back. Knows no method.
"""

from __future__ import annotations

import importlib.metadata
import json
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


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest that somebody else wrote. OSError, or ValueError with one line for a file that is no JSON object."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def part_of(path: Path, record: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in the manifest of a run (``model``, ``data``). ValueError with one line where it is none."""
    found = record.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected the manifest of a run, {name} an object, got {found!r:.60}")
    return found


def weights_and_data(path: Path, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Digest of the weights, and what the pictures are: what tells one run from another. ValueError as above."""
    weights = part_of(path, record, "model").get("weights_sha256")
    if not isinstance(weights, str):
        raise ValueError(f"{path}: model: weights_sha256: expected a text, got {weights!r:.60}")
    return weights, part_of(path, record, "data")


def pictures_done(path: Path, record: dict[str, Any]) -> int:
    """Over how many pictures a finished run is. ValueError with one line where it did not do all of them."""
    pictures = part_of(path, record, "pictures")
    done, total = pictures.get("done"), pictures.get("total")
    if type(done) is not int or done != total or done < 1:
        raise ValueError(f"{path}: pictures: expected as many done as there are, at least 1, got {done!r} of {total!r}")
    return done
