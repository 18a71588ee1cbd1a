"""Stored scores taken over from another version of the code, where computing a sample anew gives the same numbers.

Takes the work of a run, its pictures and passes; gives score files the identity they have now. A score file knows what
code, settings and versions it was made by; when these change it is computed anew, which can take hours although the
change altered no number. Here a few pictures of each file are computed by the present code, and where every number is
what is stored, within :data:`TOLERANCES` of the largest in the file, the file is kept. Others are left to be computed.
What was compared, and how far it was off, is written to ``adopted.json`` beside the scores.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.json_files import read_json
from analysis.passes import UNKNOWN, Pass
from analysis.piecework import Work, batch_of, known_pieces
from analysis.report import write_atomically
from analysis.score_files import Arrays, Piece, ScoreFile, Stored, is_whole, pieces_of, read_piece, restamp_pieces
from analysis.survey import Survey

RECORD = "adopted.json"
# Largest difference, over the largest number of an array in the file: what other processors and libraries make of the
# same code. Whole numbers must be equal.
TOLERANCES = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-4}


@dataclass(frozen=True)
class Comparison:
    """What was compared of one score file: the pictures, the largest difference (over the largest number stored), and
    why the file was not adopted (nothing where it was)."""

    pictures: tuple[int, ...]
    difference: float
    refused: str = ""


def adopt_scores(work: Work, survey: Survey, passes: Sequence[Pass], sample: int) -> dict[str, Comparison]:
    """Try the files of these passes that are not of this code; by name what came of each. Only for the main process."""
    found: dict[str, Comparison] = {}
    known = known_pieces_of(work, passes)
    for one in passes:
        pieces = {piece.sha256: piece for piece in survey.pieces(one.rows)}
        candidates: dict[str, dict[str, Stored]] = {}
        for name, depends_on in one.depends_on.items():
            stored = {sha256: place for sha256, place in pieces_of(work.files[name].path).items()}
            if stored and UNKNOWN not in depends_on and not set(stored) <= known[name]:
                candidates[name] = stored
        # Names of one pass are computed together, but each can hold other pieces.
        for name, stored in candidates.items():
            shared = [pieces[sha256] for sha256 in stored if sha256 in pieces]
            found[name] = _tried(work, one, name, stored, shared, sample)
            if not found[name].refused:
                restamp_pieces(work.files[name], list(stored.items()))
    return found


def known_pieces_of(work: Work, passes: Sequence[Pass]) -> Mapping[str, set[str]]:
    """The finished pieces of these passes that are of this code."""
    names = {name for one in passes for name in one.depends_on}
    return {name: found for name, found in known_pieces(work).items() if name in names}


def read_adopted(folder: Path) -> dict[str, dict[str, Any]]:
    """What is told of adopted files in a folder of scores, by their names; empty where there is nothing. Raises
    ValueError with one line for a file that says something else: it is not this command's to replace or remove."""
    path = folder / RECORD
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(map(_is_record, found.values())):
        raise ValueError(f"{path}: expected what --adopt writes, pictures and differences by name; move it away")
    return found


def _is_record(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and set(one) == {"pictures", "largest_relative_difference"}
        and isinstance(one["pictures"], list)
        and all(type(row) is int for row in one["pictures"])
        and type(one["largest_relative_difference"]) in (int, float)
    )


def write_record(work: Work, found: Mapping[str, Comparison]) -> None:
    """Keep what was compared, beside what is known of other files."""
    path, known = work.folder / RECORD, read_adopted(work.folder)
    for name, one in found.items():
        if one.refused:
            known.pop(name, None)
        else:
            known[name] = {"pictures": list(one.pictures), "largest_relative_difference": one.difference}
    if known:
        write_atomically(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    else:
        path.unlink(missing_ok=True)


def forget_adopted(folder: Path, names: Collection[str] | None = None) -> None:
    """Drop these files from what is told of adopted ones, or all of it: they are computed anew."""
    path, known = folder / RECORD, read_adopted(folder)
    left = {name: one for name, one in known.items() if names is not None and name not in names}
    if not left:
        path.unlink(missing_ok=True)
    elif left != known:
        write_atomically(path, (json.dumps(left, indent=1, sort_keys=True) + "\n").encode())


def told(found: Mapping[str, Comparison]) -> list[str]:
    """What came of it, in lines."""
    adopted = [one for one in found.values() if not one.refused]
    lines = [f"not adopted: {name}: {one.refused}" for name, one in found.items() if one.refused]
    if adopted:
        largest = max(one.difference for one in adopted)
        lines.append(
            f"adopted: {len(adopted)} of {len(found)} score files of other code, each compared on up to "
            f"{max(len(one.pictures) for one in adopted)} pictures; largest difference {largest:.1e} of the largest "
            "number"
        )
    return lines


def _tried(
    work: Work, one: Pass, name: str, stored: Mapping[str, Stored], shared: Sequence[Piece], sample: int
) -> Comparison:
    if not shared:
        return Comparison((), np.nan, "its pictures are others")
    broken = [sha256 for sha256, place in stored.items() if place.arrays_sha256 and not is_whole(place)]
    if broken:
        return Comparison((), np.nan, "its numbers are not those that were stored")
    places = _spread(shared, sample)
    rows = tuple(sorted(places))
    kept = [_row(read_piece(stored[places[row].sha256]), places[row].rows.index(row)) for row in rows]
    scales = _largest(work.files[name], stored)
    batch = batch_of(work, rows, one.needed(name))
    computed = one.compute(batch, [name], min(work.size.pictures, len(rows)))[name]
    worst = 0.0
    for key in sorted({*computed, *kept[0]}):
        if key not in computed or key not in kept[0]:
            return Comparison(rows, np.nan, f"array {key} is in only one of the two")
        before, after = np.concatenate([each[key] for each in kept]), np.asarray(computed[key])
        if before.dtype != after.dtype or before.shape != after.shape:
            shapes = f"{before.dtype} {before.shape}, now {after.dtype} {after.shape}"
            return Comparison(rows, np.nan, f"array {key} was {shapes}")
        own = _difference(before, after, scales[key])
        if not own <= TOLERANCES.get(before.dtype, 0.0):
            return Comparison(rows, own, f"{key} differs by {own:.1e} of the largest number on pictures {rows}")
        worst = max(worst, own)
    return Comparison(rows, worst)


def _spread(shared: Sequence[Piece], sample: int) -> dict[int, Piece]:
    """So many pictures, or all there are, of as many pieces as can be, with the piece of each."""
    rng = np.random.default_rng(len(shared))
    pieces = [shared[number] for number in rng.permutation(len(shared))]
    shuffled = [(piece, rng.permutation(np.asarray(piece.rows)).tolist()) for piece in pieces]
    turns = [(rows[turn], piece) for turn in range(max(len(rows) for _, rows in shuffled))
             for piece, rows in shuffled if turn < len(rows)]  # fmt: skip
    return dict(turns[:sample])


def _row(arrays: Arrays, place: int) -> Arrays:
    return {key: values[place : place + 1] for key, values in arrays.items()}


def _largest(file: ScoreFile, stored: Mapping[str, Stored]) -> dict[str, float]:
    """Array -> the largest finite size of its numbers, over all pieces."""
    found: dict[str, float] = {}
    for place in stored.values():
        for key, values in read_piece(place).items():
            sizes = np.abs(values[np.isfinite(values)].astype(np.float64))
            found[key] = max(found.get(key, 0.0), float(sizes.max(initial=0.0)))
    return found


def _difference(before: NDArray[Any], after: NDArray[Any], scale: float) -> float:
    """Largest difference over the scale; infinite where one is a number and the other none."""
    numbers = np.isfinite(before)
    if not np.array_equal(numbers, np.isfinite(after)) or not np.array_equal(before[~numbers], after[~numbers], True):
        return np.inf
    if not numbers.any():
        return 0.0
    largest = float(np.abs(before[numbers].astype(np.float64) - after[numbers].astype(np.float64)).max())
    return largest / scale if scale > 0 else (0.0 if largest == 0 else np.inf)
