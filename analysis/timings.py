"""How long each piece of each score took beside a plain forward pass of its pictures, in which process, and how much
memory that process had needed by then.

Takes the records of finished pieces; keeps them in ``timings.json`` beside the scores, so that a run that went on or
grew still knows them. Knows nothing of what was computed.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.json_files import read_json
from analysis.report import write_atomically

# Name of a score -> digest of a piece -> seconds, peak_mb, process, forward_seconds (not in records of old runs).
Timings = dict[str, dict[str, dict[str, Any]]]


def peak_mb() -> float:
    """The most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timings_path(folder: Path) -> Path:
    """Where the timings of the scores in a folder are kept."""
    return folder / "timings.json"


def read_timings(folder: Path) -> Timings:
    """The timings of a folder of scores, empty where there are none; a record without numbers of seconds and memory is
    not there. Raises ValueError for a file of another kind."""
    path = timings_path(folder)
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    if not _is_by_name(content):
        raise ValueError(f"{path}: expected pieces by the name of their score; move it away")
    pieces = {
        name: {key: known for key, one in found.items() if (known := _known(one))} for name, found in content.items()
    }
    return {name: found for name, found in pieces.items() if found}


def is_foreign(folder: Path) -> bool:
    """Whether the file of timings is somebody else's: JSON of another form (what is none may be a torn one of ours)."""
    try:
        return not _is_by_name(read_json(timings_path(folder)))
    except (OSError, ValueError):
        return False


def _is_by_name(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(found, dict) for found in content.values())


def _known(record: Any) -> dict[str, Any]:
    """A record of a piece, without a time of forward passes where that is no number; empty where it says too little."""
    if not isinstance(record, dict) or not all(_is_amount(record.get(key)) for key in ("seconds", "peak_mb")):
        return {}
    return {key: one for key, one in record.items() if key != "forward_seconds" or _is_amount(one)}


def _is_amount(value: Any) -> bool:
    """Whether a value is a number of seconds or MB; none is beyond what can be added up."""
    return type(value) in (int, float) and 0 <= value < 1e15 and math.isfinite(value)


def add_timings(folder: Path, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what is known of some pieces of a score; what is known of the others stays."""
    if records:
        timings = read_timings(folder)
        timings[name] = timings.get(name, {}) | {sha256: dict(record) for sha256, record in records.items()}
        write_atomically(timings_path(folder), (json.dumps(timings, indent=1, sort_keys=True) + "\n").encode())


def summary(timings: Timings, name: str, pieces: Iterable[str]) -> dict[str, float]:
    """Seconds and peak memory of these pieces of a score together, and its price in forward passes as measured: seconds
    over those of plain forward passes of the same pieces, where these are known of all. Empty where nothing is known of
    one piece."""
    found = timings.get(name, {})
    wanted = list(pieces)
    if not all(sha256 in found for sha256 in wanted):
        return {}
    seconds = sum(found[sha256]["seconds"] for sha256 in wanted)
    measured = {"seconds": seconds, "peak_mb": max(found[sha256]["peak_mb"] for sha256 in wanted)}
    forward = sum(found[sha256].get("forward_seconds", float("nan")) for sha256 in wanted)
    return measured | {"forwards_measured": seconds / forward} if forward > 0 else measured
