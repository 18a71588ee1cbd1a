"""Pictures piece by piece: which are computed already, who computes the others, and how the results come together.

Takes passes and a source of pictures; leaves a score file per name. All processes take a piece each, store what is
missing of it, and meet again; so every process draws only its own pictures, an error in one reaches all within a piece,
and a killed run has lost at most the pieces in work. Knows no method and no statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.forecast import plain_forward_seconds
from analysis.lent_contexts import with_companions
from analysis.mean_contexts import origin
from analysis.models import OpenedModel, make_batch
from analysis.out_of_memory import BatchSize, compute_fitting
from analysis.own_code import code_sha256
from analysis.passes import UNKNOWN, Pass
from analysis.pictures import PictureSource
from analysis.score_files import (
    Piece,
    ScoreFile,
    join_pieces,
    piece_records,
    remove_parts,
    score_file,
    store_piece,
    stored_pieces,
)
from analysis.sharding import Processes, bring_to_main
from analysis.survey import Survey, in_pieces, joined, look_at
from analysis.timings import add_timings, peak_mb
from attribution.batch import Batch

# Plain forward passes are timed beside the passes whose unit they are: again when so many of them have gone by.
FORWARDS_BETWEEN = 8
Known = Mapping[str, set[str]]  # name of a score -> digests of its finished pieces


@dataclass(frozen=True, eq=False)
class Work:
    """What every piece needs. ``folder`` holds ``files``, by name, all of which depend on ``depends_on``; ``size`` is
    remembered from piece to piece; ``on_progress(pass, cost done)`` counts in forward passes of one picture; ``seed``
    draws the pictures that go with a picture; ``run`` is a name no other run has, for scores that none may reuse."""

    opened: OpenedModel
    source: PictureSource
    folder: Path
    depends_on: dict[str, Any]
    files: Mapping[str, ScoreFile]
    size: BatchSize
    processes: Processes
    on_progress: Callable[[str, float], None]
    seed: int = 0
    run: str = ""


def with_files(work: Work, passes: Iterable[Pass]) -> Work:
    """The work with the files of these passes as well. What scores depend on is what the pass says and the code that it
    runs; of a method that cannot be told from another, on the run too, so that no other run takes them."""
    files = dict(work.files)
    for one in passes:
        code = {needs: code_sha256(*runs(one, work.source, needs)) for needs in {*map(one.needed, one.depends_on)}}
        for name, depends_on in one.depends_on.items():
            needs = one.needed(name)
            found = {**work.depends_on, **depends_on, "code": code[needs]}
            if not {"donor_pixel_values", "mean_context"}.isdisjoint(needs):
                found["references"] = work.source.references_sha256
            if "mean_context" in needs:
                found["mean_context"] = origin(work.opened, work.source)
            files[name] = score_file(work.folder, name, found | ({"run": work.run} if UNKNOWN in depends_on else {}))
    return replace(work, files=files)


def runs(one: Pass, source: PictureSource, needs: tuple[str, ...]) -> list[Any]:
    """Everything that is run to compute a piece of what a pass computes and needs these fields of the batch: what the
    batch is made by, and the pass itself."""
    found: list[Any] = [make_batch, Batch, one.compute]
    if needs:
        found.append(with_companions)
    if "counterfactual_pixel_values" in needs:
        found.append(source.counterfactual)
    return found


def batch_of(work: Work, rows: Sequence[int], needs: Sequence[str], batch: Batch | None = None) -> Batch:
    """The pictures of these numbers, with the pictures that a pass needs beside them; ``batch``, what there is."""
    batch = make_batch(work.opened, work.source.draw(rows)) if batch is None else batch
    missing = [name for name in needs if getattr(batch, name) is None]
    return with_companions(work.opened, batch, work.source, work.seed, missing) if missing else batch


def known_pieces(work: Work) -> Known:
    """The finished pieces of every score that the main process sees: it is the one that joins them."""
    return work.processes.gathered(lambda: {name: set(stored_pieces(file)) for name, file in work.files.items()})[0]


def survey_pictures(work: Work, first: Pass, known: Known) -> Survey:
    """Look at all pictures, and on the way compute what is missing of one pass.

    Patch labels and masks are given to the main process alone.
    """
    lots = in_pieces(range(work.source.count))
    parts: list[Survey] = []
    for start in range(0, len(lots), work.processes.number):
        turn = lots[start : start + work.processes.number]

        def own(turn: list[tuple[int, ...]] = turn) -> tuple[Survey | None, list[Path]]:
            if work.processes.rank >= len(turn):
                return None, []
            rows = turn[work.processes.rank]
            part = look_at(work.source.draw(rows))
            piece = Piece(rows, part.piece(range(len(part))).sha256)
            return part, _compute(work, piece, [first], known, sum(map(len, turn)) / len(rows))

        found = work.processes.gathered(own)
        bring_to_main(work.processes, work.folder, found[work.processes.rank][1])
        seen = [part for part, _ in found if part is not None]
        parts += seen if work.processes.is_main else [replace(part, patch_labels=None, masks=None) for part in seen]
    return joined(parts)


def compute_pieces(work: Work, jobs: Iterable[tuple[Piece, Sequence[Pass]]], known: Known) -> None:
    """Compute what is missing of some passes for some pieces; pieces of the same pictures are one job."""
    waiting: list[tuple[Piece, Sequence[Pass]]] = []
    for piece, passes in jobs:
        if any(_missing(one, piece, known) for one in passes):
            waiting.append((piece, passes))
        else:
            for one in passes:
                work.on_progress(one.name, one.forwards * len(piece.rows))
    for start in range(0, len(waiting), work.processes.number):
        turn = waiting[start : start + work.processes.number]

        def own(turn: list[tuple[Piece, Sequence[Pass]]] = turn) -> list[Path]:
            if work.processes.rank >= len(turn):
                return []
            piece, passes = turn[work.processes.rank]
            share = sum(len(other.rows) for other, _ in turn) / len(piece.rows)
            return _compute(work, piece, passes, known, share)

        found = work.processes.gathered(own)
        bring_to_main(work.processes, work.folder, found[work.processes.rank])


def join_scores(work: Work, names: Iterable[str], pieces: Sequence[Piece]) -> None:
    """Make the files of these scores, in the main process, from all their pieces."""
    files = [work.files[name] for name in names]

    def join() -> None:
        for file in files:
            add_timings(work.folder, file.name, piece_records(file))
            join_pieces(file, pieces)

    def clear() -> None:  # what lies in folders of other hosts
        for file in files:
            remove_parts(file, pieces)

    work.processes.gathered(join if work.processes.is_main else lambda: None)
    work.processes.gathered(lambda: None if work.processes.is_main else clear())


def _missing(one: Pass, piece: Piece, known: Known) -> list[str]:
    return [name for name in one.depends_on if piece.sha256 not in known[name]]


def _compute(work: Work, piece: Piece, passes: Sequence[Pass], known: Known, share: float) -> list[Path]:
    """Compute and store what is missing of one piece; ``share`` says how many times its pictures all processes have
    in work just now. Gives the files written."""
    written: list[Path] = []
    batch: Batch | None = None
    forward, measured_at = 0.0, -np.inf
    for one in passes:
        wanted = _missing(one, piece, known)
        if wanted:
            needs = dict.fromkeys(field for name in wanted for field in one.needed(name))
            batch = batch_of(work, piece.rows, tuple(needs), batch)
            if time.perf_counter() - measured_at > FORWARDS_BETWEEN * forward:
                forward = plain_forward_seconds(work.opened, batch, work.size)
                measured_at = time.perf_counter()
            start = time.perf_counter()
            compute = one.compute
            found = compute_fitting(
                lambda part, size, compute=compute, wanted=wanted: compute(part, wanted, size),  # type: ignore[misc]
                batch,
                work.size,
                one.name,
            )
            record = {
                "seconds": (time.perf_counter() - start) / len(wanted),
                "peak_mb": peak_mb(),
                "process": work.processes.rank,
                "forward_seconds": forward,
            }
            written += [store_piece(work.files[name], piece, found[name], record) for name in wanted]
        work.on_progress(one.name, one.forwards * len(piece.rows) * share)
    return written
