"""Infidelity: how well a method's scores, added up, tell what the loss does when several heads are turned down at once.

Takes the scores of a run; gives one pass, which turns down heads at random and is the same for all methods, and a
table. Infidelity of Yeh et al. 2019 (1901.09392, definition 2.1), of the gates as inputs: a perturbation I has I_h =
u b for each head, u uniform on [0, 1) and b = 1 with probability 1/4, so that gates are 1 - I; the change is l(1) -
l(1 - I), and an attribution Phi to the gates should give it as I . Phi. A score predicts the rise of the loss when a
head is removed, so Phi = -score. As in the authors' code and in Captum, Phi is scaled first by the beta that fits each
picture best, hence any unit of the scores, and any sign, is forgiven: beta tells both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.checks.evidence import Evidence, Orders
from analysis.intervals import percentile_interval
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.method import Method
from attribution.vit import ViTRegressor, attention_modules, gated, loss_per_image, num_heads_of, require_eval

NAME = "check_infidelity"
SAMPLES = 32
PROBABILITY = 0.25  # of turning down a head
COLUMNS = ("method", "signed", "infidelity", "ci_low", "ci_high", "beta_median", "n")

Floats = NDArray[np.float64]


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass: ``perturbations`` float32 [image sample layer head] and ``changes`` float64 [image sample]."""
    modules = attention_modules(opened.model)
    shape = (SAMPLES, len(modules), num_heads_of(modules[0]))

    def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        perturbations = np.stack([perturbation(settings.seed, row, shape) for row in batch.indices.tolist()])
        changes = loss_changes(opened.model, batch, perturbations, batch_size=batch_size)
        return {NAME: {"perturbations": perturbations, "changes": changes}}

    depends_on = {"seed": settings.seed}
    rows = first_rows(settings.check_pictures, source.count)
    return [Pass(NAME, {NAME: depends_on}, compute, 1.0 + SAMPLES, rows=rows)]


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a method, and one for ``ablation_zero``: the best that single removals have to say.

    ``infidelity``: median over pictures of the mean squared error of the scaled sum, divided by the mean squared
    change: 0 is exact, 1 is no better than saying nothing; its interval is that of the 2.5 and 97.5 % quantiles of the
    median over resampled pictures. ``beta_median``: 1 where scores are in the loss's own units, below 0 where they
    point the wrong way. Pictures whose loss never changes are left out of n.
    """
    found = evidence.read(NAME)
    signed = {name: method.signed for name, method in evidence.methods.items()} | {"ablation_zero": True}
    scores = dict(evidence.scores) | {"ablation_zero": evidence.truth.delta_loss}
    rows = []
    for name, is_signed in signed.items():
        count = min(len(scores[name]), len(found["changes"]))
        values, betas = infidelities(-scores[name][:count], found["perturbations"][:count], found["changes"][:count])
        known = np.isfinite(values)
        number = int(known.sum())
        if not number:
            rows.append((name, is_signed, np.nan, np.nan, np.nan, np.nan, 0))
            continue
        resampled = np.median(values[known][evidence.indices(number)], axis=1)
        low, high = percentile_interval(resampled[:, None])
        numbers = (np.median(values[known]), low[0], high[0], np.median(betas[known]))
        rows.append((name, is_signed, *numbers, number))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def perturbation(seed: int, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """How far each gate is turned down, in the samples of picture ``row``; it depends on seed and picture alone."""
    rng = np.random.default_rng([seed, 10, row])
    amount, is_down = rng.random(shape), rng.random(shape) < PROBABILITY
    return (amount * is_down).astype(np.float32)


@torch.no_grad()
def loss_changes(model: ViTRegressor, batch: Batch, perturbations: NDArray[np.float32], *, batch_size: int) -> Floats:
    """The loss of the intact model minus that with gates 1 - I, [image sample], for I [image sample layer head].

    ``batch_size`` pictures go through in one pass. Raises ValueError for a model in train mode.
    """
    require_eval(model)
    num_images, num_samples = perturbations.shape[:2]
    labels = batch.labels.to("cpu", torch.float64)
    intact = torch.cat([model(part.pixel_values) for part in batch.chunks(batch_size)]).to("cpu", torch.float64)
    gates = 1 - torch.from_numpy(perturbations).flatten(0, 1).to(model.device, model.dtype)
    image = torch.arange(num_images).repeat_interleave(num_samples)
    predictions = []
    for rows in torch.arange(len(image)).split(batch_size):
        with gated(model, gates[rows.to(gates.device)]):
            outputs = model(batch.pixel_values[image[rows].to(batch.pixel_values.device)])
        predictions.append(outputs.to("cpu", torch.float64))
    losses = loss_per_image(torch.cat(predictions), labels[image]).reshape(num_images, num_samples)
    return (loss_per_image(intact, labels)[:, None] - losses).numpy()


def infidelities(attributions: Floats, perturbations: NDArray[np.float32], changes: Floats) -> tuple[Floats, Floats]:
    """Normalised infidelity over the mean squared change, and beta, [image] each.

    ``attributions`` Phi [image layer head], ``perturbations`` I [image sample layer head], ``changes`` [image sample].
    With a = I . Phi and beta = mean(a change) / mean(a^2), 0 where a is always 0: mean((beta a - change)^2) /
    mean(change^2), NaN where nothing changes.
    """
    sums = np.einsum("islh,ilh->is", perturbations.astype(np.float64), attributions)
    squares, changed = (sums**2).mean(axis=1), (changes**2).mean(axis=1)
    beta = np.where(squares > 0, (sums * changes).mean(axis=1) / np.where(squares > 0, squares, 1.0), 0.0)
    error = ((beta[:, None] * sums - changes) ** 2).mean(axis=1)
    return np.where(changed > 0, error / np.where(changed > 0, changed, 1.0), np.nan), beta
