"""Arrays in a file of their own that says what they must be: a file whose numbers are others is no file.

Takes arrays by name; gives them back as they were stored, or None. Knows not what they mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.report import write_atomically

ENTRY = "arrays"  # the only one of a file's metadata: several are written in an order that changes


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Digest of names, types, shapes and numbers of arrays."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        values = np.ascontiguousarray(arrays[key])
        digest.update(json.dumps([key, values.dtype.str, list(values.shape)]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def write_checked(path: Path, arrays: Mapping[str, NDArray[Any]], identity: str = "") -> Path:
    """Write arrays, whole or not at all, with what they are of (``identity``) and their digest."""
    stored = {key: np.ascontiguousarray(values) for key, values in arrays.items()}
    entry = json.dumps({"identity": identity, "sha256": arrays_sha256(stored)}, sort_keys=True)
    return write_atomically(path, save(stored, {ENTRY: entry}))


def read_checked(path: Path, identity: str = "") -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, None where it is not there, not of this ``identity``, or not what was stored."""
    try:
        with safe_open(path, framework="numpy") as file:
            entry = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("identity") != identity:
        return None
    return arrays if entry.get("sha256") == arrays_sha256(arrays) else None
