"""Scores on disk: one safetensors file per method, made piece by piece, reused when nothing about them changed.

Takes a folder, an identity (what the scores depend on) and a function from a slice of pictures to arrays; gives the
arrays of all pictures. A finished piece is a file; a killed run does at most one piece twice and ends with the same
bytes. Knows neither models nor methods.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.report import write_atomically

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ScoreFolder:
    """Where scores live, what all of them depend on, and how many pictures make a piece."""

    folder: Path
    identity: Mapping[str, Any]
    num_pictures: int
    pictures_per_piece: int = 16

    def pieces(self) -> list[slice]:
        """Slices of the pictures, in order."""
        step = self.pictures_per_piece
        return [slice(start, min(start + step, self.num_pictures)) for start in range(0, self.num_pictures, step)]


def read_scores(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a score file. Raises ValueError for a file that is none."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file of scores ({error})") from error


def compute_scores(
    scores: ScoreFolder,
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[slice], Arrays],
    *,
    on_piece: Callable[[int], None] | None = None,
) -> tuple[Arrays, bool]:
    """Arrays of all pictures, from disk if their identity and settings are unchanged, else computed piece by piece.

    The first axis of every array is the image. ``on_piece`` is told the number of pictures of every piece that is done.
    Returns the arrays and whether anything had to be computed.
    """
    description = json.dumps({"name": name, **scores.identity, **settings}, sort_keys=True, default=str)
    digest = hashlib.sha256(description.encode()).hexdigest()
    path = scores.folder / f"{name}.safetensors"
    if _matches(path, digest):
        if on_piece is not None:
            on_piece(scores.num_pictures)
        return read_scores(path)[0], False
    parts = scores.folder / f"{name}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    found: list[Arrays] = []
    for piece in scores.pieces():
        part = parts / f"{piece.start:06d}-{piece.stop:06d}.safetensors"
        if not _matches(part, digest):
            _write(part, compute(piece), digest)
        found.append(read_scores(part)[0])
        if on_piece is not None:
            on_piece(piece.stop - piece.start)
    arrays = {key: np.concatenate([piece[key] for piece in found]) for key in found[0]}
    _write(path, arrays, digest)
    shutil.rmtree(parts)
    return arrays, True


def _write(path: Path, arrays: Arrays, digest: str) -> None:
    # One entry alone: safetensors writes several in an order that changes from call to call.
    metadata = {"identity": digest}
    write_atomically(path, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata))


def _matches(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    try:
        return read_scores(path)[1].get("identity") == digest
    except ValueError:
        return False
