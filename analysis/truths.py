"""The truths of a run: what removing each head does to each picture, swept on all pictures or estimated from a few.

Takes the work of a run and its pictures; computes what is missing and gives :class:`~analysis.scorecard.Truth`, one for
each way to remove a head. An estimate sweeps a random sample of the pictures and predicts the others to first order
(:mod:`analysis.estimate`); heads that are predicted badly are swept on all pictures. Knows no methods and no tables.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from analysis.companions import NUM_DONORS
from analysis.devices import bfloat16_is_native
from analysis.estimate import (
    Estimate,
    drawn_pictures,
    estimate_from_outputs,
    poor_heads,
    sample_pictures,
    with_exact,
)
from analysis.models import OpenedModel
from analysis.optimal_contexts import held_optimal
from analysis.passes import ATTENTION, Pass
from analysis.pictures import PictureSource
from analysis.piecework import Work, compute_pieces, join_scores, known_pieces, with_files
from analysis.sample_size import HEADS_ASKED, SampleSize, sample_size
from analysis.score_files import Arrays, read_scores
from analysis.scorecard import Truth
from analysis.settings import AUTO, CompareSettings
from analysis.stored_array import StoredArray
from analysis.survey import PICTURES_PER_PIECE, Survey
from analysis.truth_passes import SHAPLEY, chosen_truths, truth_pass
from attribution.batch import Batch, MethodSettings
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN, GradientReadings, read_gradients

PREDICTOR = "effect_predictor"
# One forward and a backward per target, in half the time of a float32 pass where bfloat16 is native.
PREDICTOR_FORWARDS = {torch.bfloat16: 2.2, None: 4.0}
LENT_FORWARDS = {torch.bfloat16: 0.5, None: 1.0}  # of a picture whose contexts are lent
_LENT = {"mean": (MEAN,), "resample": (DONORS,), "counterfactual": (COUNTERFACTUAL,)}
# Fewer swept pictures leave the choice of badly predicted heads to chance (results/README.md, estimate_precision.csv).
LEAST_SWEPT = 48


def truth_passes(opened: OpenedModel, source: PictureSource, settings: CompareSettings) -> list[Pass]:
    """What the truths are made of: sweeps, or the sweeps of a sample and the predictor."""
    kinds, sample = chosen_truths(settings, source), sample_of(settings, source.count)
    if sample is None:
        return [truth_pass(opened, source, settings, kind) for kind in kinds]
    sweeps = [truth_pass(opened, source, settings, kind, name=sample_name(kind)) for kind in kinds]
    return [*(replace(one, rows=tuple(sample)) for one in sweeps), predictor_pass(opened, source, settings, kinds)]


def sample_name(kind: str) -> str:
    """Under which name the sweep of the sample is stored."""
    return f"ablation_{kind}_sample"


def poor_name(kind: str) -> str:
    """Under which name the sweep of badly predicted heads is stored."""
    return f"ablation_{kind}_poor"


def predictor_name(kind: str) -> str:
    """Under which name the first-order predictions are stored."""
    return f"{PREDICTOR}_{kind}"


def predictor_pass(opened: OpenedModel, source: PictureSource, settings: CompareSettings, kinds: Sequence[str]) -> Pass:
    """What leaves each output, to first order, when a head's context becomes what each kind of ablation puts there; in
    bfloat16 where the device has it.

    One forward pass and a backward pass per output for all of them, and a forward pass for each other picture whose
    contexts are lent. The numbers only steer: an estimate is unbiased whatever they are.
    """
    dtype = (
        torch.bfloat16
        if bfloat16_is_native(torch.device(settings.device)) and opened.model.dtype == torch.float32
        else None
    )
    names = {predictor_name(kind): kind for kind in kinds}

    def compute(batch: Batch, wanted: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        lent = tuple(dict.fromkeys(field for name in wanted for field in _LENT.get(names[name], ())))
        dials = MethodSettings(internal_batch_size=batch_size)
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for readings in read_gradients(opened.model, batch, dials, lent, dtype=dtype):
            for name in wanted:
                found[name].append(_removed(opened, source, readings, names[name]).float().cpu())
        return {name: {"contributions": torch.cat(parts).numpy()} for name, parts in found.items()}

    lending = sum({"resample": NUM_DONORS, "counterfactual": 1}.get(kind, 0) for kind in kinds)
    return Pass(
        PREDICTOR,
        {name: {"dtype": str(dtype), "seed": settings.seed} for name in names},
        compute,
        PREDICTOR_FORWARDS[dtype] + LENT_FORWARDS[dtype] * lending,
        needs=tuple(dict.fromkeys(field for kind in kinds for field in _LENT.get(kind, ()))),
        needs_of={name: _LENT.get(kind, ()) for name, kind in names.items()},
    )


def _removed(opened: OpenedModel, source: PictureSource, readings: GradientReadings, kind: str) -> Tensor:
    """`[image layer head target]`, of resample ablation `[image layer head donor target]`."""
    if kind == "zero":
        found = [readings.removed()]
    elif kind == "optimal":
        context = held_optimal(opened, source).to(opened.model.device, opened.model.dtype).flatten(2)
        found = [readings.removed([layer[None] for layer in context])]
    else:
        found = [readings.removed(one) for one in readings.replacements[_LENT[kind][0]]]
    turned = [one.permute(0, 2, 3, 1) for one in found]
    return turned[0] if kind != "resample" else torch.stack(turned, dim=3)


def sample_of(settings: CompareSettings, count: int) -> list[int] | None:
    """Numbers of the pictures that an estimate sweeps (with ``auto`` to begin with); None where all are swept.
    ValueError for too many or too few."""
    if settings.estimate is None:
        return None
    if isinstance(settings.estimate, str):
        if count <= LEAST_SWEPT:
            raise ValueError(f"--estimate {AUTO}: expected more than {LEAST_SWEPT} pictures, got {count}")
        return drawn_pictures(count, LEAST_SWEPT, settings.seed).tolist()
    if not 3 <= settings.estimate < count:
        raise ValueError(
            f"--estimate: expected from 3 to {count - 1} of {count} pictures to sweep, got {settings.estimate}"
        )
    return sample_pictures(count, settings.estimate, settings.seed).tolist()


def read_truths(work: Work, survey: Survey, settings: CompareSettings) -> tuple[Truth, ...] | None:
    """The truths, zero ablation first, from what :func:`truth_passes` have computed; the main process is given them,
    the others None.

    Where heads are predicted badly by an estimate all processes sweep them on all pictures first.
    """
    kinds, sample = chosen_truths(settings, work.source), sample_of(settings, len(survey))
    if sample is not None:
        if settings.interval is not None:
            sample = _enough_swept(work, survey, settings, kinds, sample)
        estimated = [_estimated(work, survey, settings, kind, sample) for kind in kinds]
        known = [one for one in estimated if one is not None]
        return tuple(known) if work.processes.is_main else None
    if not work.processes.is_main:
        return None
    truths = []
    for kind in kinds:
        if kind != SHAPLEY:
            found = read_scores(work.files[f"ablation_{kind}"].path)[0]
            truths.append(Truth(kind, found["delta_loss"], found["delta_target_sq"], found["intact_loss"]))
    return tuple(truths)


def _enough_swept(
    work: Work, survey: Survey, settings: CompareSettings, kinds: Sequence[str], rows: Sequence[int]
) -> list[int]:
    """The pictures swept when every truth's intervals are as narrow as was asked for: more of them by whole pieces, in
    the order in which they are drawn, until a sample says of itself that it suffices. How many is thus told by spreads,
    not by effects; the main process says what it found."""
    total = len(survey)
    while True:
        sample = np.array(rows)
        found = {
            kind: sample_size(_estimates(work, survey, kind, sample)[0], float(settings.interval or 0))
            for kind in (kinds if work.processes.is_main else ())
        }
        most = max((one.needed for one in found.values()), default=0)
        needed = work.processes.gathered(partial(int, most))[0]
        if needed <= len(rows) or len(rows) == total:
            if work.processes.is_main:
                for line in _told_sizes(found, len(rows), float(settings.interval or 0)):
                    tqdm.write(line, file=sys.stderr)
            return list(rows)
        number = min(total, PICTURES_PER_PIECE * -(-max(needed, len(rows) + 1) // PICTURES_PER_PIECE))
        rows = drawn_pictures(total, number, settings.seed).tolist()
        sweeps = [
            replace(truth_pass(work.opened, work.source, settings, kind, name=sample_name(kind)), rows=tuple(rows))
            for kind in kinds
        ]
        pieces = survey.pieces(rows)
        compute_pieces(work, [(piece, sweeps) for piece in pieces], known_pieces(work))
        for one in sweeps:
            join_scores(work, [one.name], pieces)


def _told_sizes(found: Mapping[str, SampleSize], swept: int, interval: float) -> list[str]:
    """What sampling came to, and what these pictures cannot give."""
    lines = []
    for kind, one in found.items():
        width = f"intervals within {100 * one.widest:.0f} % of the effect"
        reached = f"{kind}: {swept} of {one.total} pictures swept, {width}"
        if one.out_of_reach:
            more = f"about {one.pictures_for_all}" if one.pictures_for_all > 0 else "no number of"
            reached += (
                f"; of {one.out_of_reach} of the {HEADS_ASKED} heads these pictures cannot give {100 * interval:g} %, "
                f"{more} pictures would"
            )
        lines.append(reached)
    return lines


def read_shapley(work: Work, settings: CompareSettings) -> NDArray[np.float64] | None:
    """Shapley values of the loss over gates, `[image layer head]` of the first pictures; None where not asked for."""
    if settings.estimate is None and SHAPLEY in chosen_truths(settings, work.source):
        return np.asarray(read_scores(work.files[SHAPLEY].path)[0]["scores"], dtype=np.float64)
    return None


def _estimated(work: Work, survey: Survey, settings: CompareSettings, kind: str, rows: Sequence[int]) -> Truth | None:
    sample = np.array(rows)
    estimates = _estimates(work, survey, kind, sample) if work.processes.is_main else None
    poor: list[tuple[int, int]] = []
    if estimates is not None:
        poor = [(int(layer), int(head)) for layer, head in np.argwhere(poor_heads(estimates[0]))]
    poor = work.processes.gathered(lambda: poor)[0]
    exact: Arrays | None = None
    if poor:
        exact = _swept(work, survey, settings, kind, poor)
    if estimates is None:
        return None
    loss, per_target = estimates
    units_sq = np.asarray(work.opened.model.config.label_std) ** 2
    if exact is not None:
        marks = np.zeros(loss.r2.shape, dtype=bool)
        marks[tuple(np.transpose(poor))] = True
        loss = with_exact(loss, exact["delta_loss"], marks)
        per_target = with_exact(per_target, exact["delta_target_sq"] / units_sq, marks)
    intact = (_residuals(work, survey) ** 2).mean(axis=1)
    return Truth(
        f"{kind}_estimated",
        loss.pseudo_values,
        per_target.pseudo_values * units_sq,
        intact,
        is_swept=loss.is_exact,
        r2=loss.r2,
        num_swept=len(sample),
    )


def _estimates(work: Work, survey: Survey, kind: str, sample: NDArray[np.int64]) -> tuple[Estimate, Estimate]:
    changes = read_scores(work.files[sample_name(kind)].path)[0]["output_changes"]
    contributions = read_scores(work.files[predictor_name(kind)].path)[0]["contributions"]
    return estimate_from_outputs(changes, -contributions, _residuals(work, survey), sample)


def _residuals(work: Work, survey: Survey) -> NDArray[np.float64]:
    """Predictions minus labels, standardised, `[image target]`."""
    predictions = np.asarray(StoredArray(work.files[ATTENTION].path, "predictions")[:], dtype=np.float64)
    return predictions - work.opened.model.standardise(survey.labels).double().cpu().numpy()


def _swept(
    work: Work, survey: Survey, settings: CompareSettings, kind: str, heads: Sequence[tuple[int, int]]
) -> Arrays | None:
    """The effects of some heads on all pictures, for the main process."""
    one = truth_pass(work.opened, work.source, settings, kind, name=poor_name(kind), heads=heads)
    one = replace(one, rows=None)
    more = with_files(work, [one])
    pieces = survey.pieces()
    compute_pieces(more, [(piece, [one]) for piece in pieces], known_pieces(more))
    join_scores(more, [one.name], pieces)
    return read_scores(more.files[one.name].path)[0] if work.processes.is_main else None
