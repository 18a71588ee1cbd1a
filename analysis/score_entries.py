"""What a score file says of itself: whose scores they are, of which pieces, and what the numbers of each piece were.

Takes safetensors files; gives what their metadata say under :data:`ENTRY`, or nothing where they are torn, of another
make or of another form: a file that says nothing is computed anew. Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.checked_arrays import arrays_sha256

# The only entry of a file's metadata: safetensors writes several in an order that changes from call to call.
ENTRY = "scores"
# What reading a file raises that is no safetensors file, is cut off, or holds kinds of numbers that numpy lacks.
UNREADABLE = (SafetensorError, OSError, TypeError)


def read_entry(path: Path) -> dict[str, Any]:
    """What a score file says of itself; empty for anything that is no score file of this make."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _parsed((file.metadata() or {}).get(ENTRY, "{}"))
    except UNREADABLE:
        return {}


def made_of(entry: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Number of pictures, their digest, and the digest of their arrays (empty in files of an earlier make), piece by
    piece; nothing where one of them is of another form."""
    pieces = entry.get("pieces")
    if not isinstance(pieces, list) or not all(isinstance(one, list) and len(one) in (2, 3) for one in pieces):
        return []
    whole = [(*one, "")[:3] for one in pieces]
    fits = all(type(one[0]) is int and one[0] > 0 and all(type(text) is str for text in one[1:]) for one in whole)
    return whole if fits else []


def picture_counts(path: Path) -> set[int | None]:
    """The numbers of pictures of the arrays of a file; None among them for one that has no first axis."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {next(iter(file.get_slice(key).get_shape()), None) for key in file.keys()}
    except UNREADABLE:
        return set()


def says_scores(path: Path) -> bool | None:
    """Whether a safetensors file says anything of scores (False: it is somebody else's); None for what is none, or
    torn."""
    try:
        with safe_open(path, framework="numpy") as file:
            return ENTRY in (file.metadata() or {})
    except UNREADABLE:
        return None


def require_stored(path: Path, arrays: Mapping[str, NDArray[Any]], text: str) -> None:
    """ValueError where the arrays of a file are not those that its entry, given as its ``text``, says were stored."""
    pieces = made_of(_parsed(text))
    if not pieces:
        raise ValueError(f"{path}: metadata {ENTRY}: expected the pieces that its numbers are made of")
    total = sum(count for count, _, _ in pieces)
    for key, values in arrays.items():
        if np.shape(values)[:1] != (total,):
            raise ValueError(f"{path}, {key}: expected {total} pictures, got {list(np.shape(values))}")
    start = 0
    for count, _, sha256 in pieces:
        stop = start + count
        if sha256 and arrays_sha256({key: values[start:stop] for key, values in arrays.items()}) != sha256:
            raise ValueError(
                f"{path}: pictures {start} to {stop - 1}: their numbers are not those that were stored; bring the file "
                "back, or compute it anew"
            )
        start = stop


def _parsed(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) and {"identity", "pieces"} <= set(entry) else {}
