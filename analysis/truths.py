"""The truths of a run: what removing each head does to each picture, swept on all pictures or estimated from a few.

Takes the work of a run and its pictures; computes what is missing and gives :class:`~analysis.scorecard.Truth`, one for
each way to remove a head. An estimate sweeps a random sample of the pictures and predicts the others to first order
(:mod:`analysis.estimate`); heads that are predicted badly are swept on all pictures. Knows no methods and no tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.devices import bfloat16_is_native
from analysis.estimate import estimate_from_outputs, poor_heads, sample_pictures, with_exact
from analysis.models import OpenedModel
from analysis.passes import ATTENTION, Pass
from analysis.pictures import PictureSource
from analysis.piecework import Work, compute_pieces, join_scores, known_pieces, with_files
from analysis.score_files import Arrays, read_scores
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from analysis.stored_array import StoredArray
from analysis.survey import Survey
from analysis.truth_passes import SHAPLEY, chosen_truths, truth_pass, zero_pass
from attribution.batch import Batch
from attribution.contributions import output_contributions

SAMPLE, PREDICTOR, POOR = "ablation_zero_sample", "effect_predictor", "ablation_zero_poor"
# One forward and a backward per target, in half the time of a float32 pass where bfloat16 is native.
PREDICTOR_FORWARDS = {torch.bfloat16: 2.2, None: 4.0}
PICTURES_PER_PASS = 8
# Fewer swept pictures leave the choice of badly predicted heads to chance (results/README.md, estimate_precision.csv).
LEAST_SWEPT = 48


def truth_passes(opened: OpenedModel, source: PictureSource, settings: CompareSettings) -> list[Pass]:
    """What the truths are made of: sweeps, or the sweep of a sample and the predictor."""
    sample = sample_of(settings, source.count)
    if sample is not None:
        return [replace(zero_pass(opened, SAMPLE), rows=tuple(sample)), predictor_pass(opened, settings)]
    kinds = chosen_truths(settings, source)
    return [truth_pass(opened, source, settings, kind) for kind in kinds]


def predictor_pass(opened: OpenedModel, settings: CompareSettings) -> Pass:
    """First-order contributions of all heads to the outputs, in bfloat16 where the device has it.

    Its numbers only steer: an estimate is unbiased whatever they are.
    """
    dtype = (
        torch.bfloat16
        if bfloat16_is_native(torch.device(settings.device)) and opened.model.dtype == torch.float32
        else None
    )

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        found = output_contributions(opened.model, batch, batch_size=min(batch_size, PICTURES_PER_PASS), dtype=dtype)[1]
        return {PREDICTOR: {"contributions": found.permute(0, 2, 3, 1).float().cpu().numpy()}}

    return Pass(PREDICTOR, {PREDICTOR: {"dtype": str(dtype)}}, compute, PREDICTOR_FORWARDS[dtype])


def sample_of(settings: CompareSettings, count: int) -> list[int] | None:
    """Numbers of the pictures that an estimate sweeps; None where all are swept. ValueError for too many or too few."""
    if settings.estimate is None:
        return None
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
    sample = sample_of(settings, len(survey))
    if sample is not None:
        estimated = _estimated(work, survey, sample)
        return None if estimated is None else (estimated,)
    if not work.processes.is_main:
        return None
    truths = []
    for kind in chosen_truths(settings, work.source):
        if kind != SHAPLEY:
            found = read_scores(work.files[f"ablation_{kind}"].path)[0]
            truths.append(Truth(kind, found["delta_loss"], found["delta_target_sq"], found["intact_loss"]))
    return tuple(truths)


def read_shapley(work: Work, settings: CompareSettings) -> NDArray[np.float64] | None:
    """Shapley values of the loss over gates, `[image layer head]` of the first pictures; None where not asked for."""
    if settings.estimate is None and SHAPLEY in chosen_truths(settings, work.source):
        return np.asarray(read_scores(work.files[SHAPLEY].path)[0]["scores"], dtype=np.float64)
    return None


def _estimated(work: Work, survey: Survey, rows: Sequence[int]) -> Truth | None:
    sample = np.array(rows)
    estimates = _estimates(work, survey, sample) if work.processes.is_main else None
    poor: list[tuple[int, int]] = []
    if estimates is not None:
        poor = [(int(layer), int(head)) for layer, head in np.argwhere(poor_heads(estimates[0]))]
    poor = work.processes.gathered(lambda: poor)[0]
    exact: Arrays | None = None
    if poor:
        exact = _swept(work, survey, poor)
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
        "zero_estimated",
        loss.pseudo_values,
        per_target.pseudo_values * units_sq,
        intact,
        is_swept=loss.is_exact,
        r2=loss.r2,
        num_swept=len(sample),
    )


def _estimates(work: Work, survey: Survey, sample: NDArray[np.int64]) -> Any:
    changes = read_scores(work.files[SAMPLE].path)[0]["output_changes"]
    contributions = read_scores(work.files[PREDICTOR].path)[0]["contributions"]
    return estimate_from_outputs(changes, -contributions, _residuals(work, survey), sample)


def _residuals(work: Work, survey: Survey) -> NDArray[np.float64]:
    """Predictions minus labels, standardised, `[image target]`."""
    predictions = np.asarray(StoredArray(work.files[ATTENTION].path, "predictions")[:], dtype=np.float64)
    return predictions - work.opened.model.standardise(survey.labels).double().cpu().numpy()


def _swept(work: Work, survey: Survey, heads: Sequence[tuple[int, int]]) -> Arrays | None:
    """The effects of some heads on all pictures, for the main process."""
    one = zero_pass(work.opened, POOR, heads)
    more = with_files(work, [one])
    pieces = survey.pieces()
    compute_pieces(more, [(piece, [one]) for piece in pieces], known_pieces(more))
    join_scores(more, [POOR], pieces)
    return read_scores(more.files[POOR].path)[0] if work.processes.is_main else None
