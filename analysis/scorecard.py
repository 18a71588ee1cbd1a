"""The tables of a run, from per-picture scores: one row a head, one row a method and head, one row a method.

Takes arrays ``[image layer head]``, the localization tables and the shared bootstrap; gives tidy pandas tables. Needs
no model, so tables can be made again from stored scores.

Conventions: effects are ablated minus intact, in % of the label variance (standardised MSE x 100) and, beside it, in %
of the intact MSE; per target in squared units. Scores of methods are oriented (larger = matters more; those whose
direction is "-" are turned round). Rank 1 is the head that matters most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.intervals import Indices, Interval, index_counts, interval_over_images, percentile_interval
from attribution.methods import Method, MethodSettings, cost

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Truth:
    """Effects of removing each head. ``delta_loss`` [image layer head]; ``delta_target_sq`` [image layer head target]
    in squared units; ``intact_loss`` [image].

    Where they are estimated (:mod:`analysis.estimate`) the effects are pseudo-values, of which means alone mean
    anything; ``is_swept`` [layer head] then tells the heads whose effects are exact nevertheless, and ``r2``
    [layer head] how much of the variance over pictures the predictor explains, ``num_swept`` how many pictures were
    swept.
    """

    kind: str
    delta_loss: Floats
    delta_target_sq: Floats
    intact_loss: Floats
    is_swept: NDArray[np.bool_] | None = None
    r2: Floats | None = None
    num_swept: int | None = None

    @property
    def name(self) -> str:
        """Its name in tables: ``ablation_<kind>``."""
        return f"ablation_{self.kind}"

    @property
    def is_estimated(self) -> bool:
        """Whether the effects are estimates."""
        return self.is_swept is not None

    @property
    def degrees_of_freedom(self) -> int | None:
        """Of the interval of an estimated mean effect: pictures swept, less one each for the mean and the slope of the
        fit (too few for a head swept on all, whose interval is a little wide). None where all were swept."""
        return None if self.num_swept is None else self.num_swept - 2


def effect_column(scorecard: pd.DataFrame) -> str:
    """The column of a scorecard with the mean effects, ``ablation_<kind>_var_pct``. ValueError where there is none."""
    found = [str(name) for name in scorecard if str(name).startswith("ablation_") and str(name).endswith("_var_pct")]
    if not found:
        raise ValueError("head_scorecard: expected a column ablation_<kind>_var_pct")
    return found[0]


def oriented(scores: Floats, method: Method) -> Floats:
    """Scores turned so that larger means that the head matters more."""
    return -scores if method.direction == "-" else scores


def ranks(values: Floats) -> Floats:
    """Rank of each head, 1 = highest; ties share their average rank. ``[layer head]``."""
    return rankdata(-values, method="average").reshape(values.shape)


def scorecard_table(
    truths: Sequence[Truth],
    shapley: Floats | None,
    scores: Mapping[str, Floats],
    methods: Mapping[str, Method],
    localization: pd.DataFrame | None,
    head_columns: Mapping[str, Floats],
    target_names: tuple[str, ...],
    target_units: tuple[str, ...],
    indices: Indices,
) -> pd.DataFrame:
    """One row a head: effects with intervals, every method's score and rank, IoU with the regions, and more columns.

    The first of ``truths`` is the primary one. What covers the first pictures alone is a mean over those; how many
    stands in ``<truth>_n`` and ``shapley_n``, and for methods in head_scores. ``localization`` holds the rows of the
    CLS query; ``head_columns`` are further ``[image layer head]`` arrays whose mean becomes a column.
    """
    num_images, num_layers, num_heads = truths[0].delta_loss.shape
    layer, head = (part.ravel() for part in np.indices((num_layers, num_heads)))
    columns: dict[str, NDArray] = {"layer": layer, "head": head}
    for truth in truths:
        columns |= _effect_columns(truth, target_names, target_units, indices(len(truth.delta_loss)))
        if len(truth.delta_loss) < num_images:
            columns[f"{truth.name}_n"] = np.full(layer.size, len(truth.delta_loss))
    if shapley is not None:
        columns |= _with_interval("shapley_var_pct", interval_over_images(100 * shapley, indices(len(shapley))))
        columns["shapley_n"] = np.full(layer.size, len(shapley))
    for name, found in scores.items():
        mean = oriented(found, methods[name]).mean(axis=0)
        columns[f"score_{name}"] = mean.ravel()
        columns[f"rank_{name}"] = ranks(mean).ravel() if np.ptp(mean) > 0 else np.full(mean.size, np.nan)
    if localization is not None:
        rows = localization[(localization["metric"] == "iou") & (localization["query"] == "cls")]
        for region, group in rows.groupby("region", sort=False):
            ordered = group.sort_values(["layer", "head"])
            columns[f"iou_{region}"] = ordered["value"].to_numpy()
            columns[f"iou_{region}_adjusted"] = ordered["adjusted"].to_numpy()
    for name, found in head_columns.items():
        columns[name] = found.mean(axis=0).ravel()
    columns["n"] = np.full(layer.size, num_images)
    return pd.DataFrame(columns)


def _effect_columns(
    truth: Truth, target_names: tuple[str, ...], target_units: tuple[str, ...], indices: NDArray[np.integer]
) -> dict[str, NDArray]:
    prefix, effect = truth.name, 100 * truth.delta_loss
    interval = interval_over_images(effect, indices, degrees_of_freedom=truth.degrees_of_freedom)
    columns: dict[str, NDArray] = _with_interval(f"{prefix}_var_pct", interval)
    if not truth.is_estimated:
        columns[f"{prefix}_var_pct_trimmed"] = interval_over_images(effect, indices, estimator="trimmed").value.ravel()
    columns |= _with_interval(f"{prefix}_mse_pct", _relative_to_intact(truth, indices))
    if not truth.is_estimated:
        columns[f"{prefix}_mse_pct_trimmed"] = columns[f"{prefix}_var_pct_trimmed"] / truth.intact_loss.mean()
    if truth.is_swept is not None and truth.r2 is not None:
        columns[f"{prefix}_is_swept"], columns[f"{prefix}_r2"] = truth.is_swept.ravel(), truth.r2.ravel()
    columns[f"{prefix}_rank"] = ranks(effect.mean(axis=0)).ravel()
    for place, (name, unit) in enumerate(zip(target_names, target_units, strict=True)):
        squared = truth.delta_target_sq[..., place].mean(axis=0).ravel()
        columns[f"{prefix}_{_squared_unit_name(name, unit)}"] = squared
    return columns


def head_scores_table(scores: Mapping[str, Floats], methods: Mapping[str, Method], indices: Indices) -> pd.DataFrame:
    """One row a method and head: mean score over its n pictures, its rank and its 95 % interval.

    Scores are oriented, as everywhere in tables: larger = the head matters more, whatever the direction of the method.
    """
    rows = []
    for name, found in scores.items():
        turned = oriented(found, methods[name])
        interval, mean = interval_over_images(turned, indices(len(found))), turned.mean(axis=0)
        rank = ranks(mean) if np.ptp(mean) > 0 else np.full(mean.shape, np.nan)
        layer, head = (part.ravel() for part in np.indices(interval.value.shape))
        rows.append(
            pd.DataFrame(
                {
                    "method": name,
                    "layer": layer,
                    "head": head,
                    "score": interval.value.ravel(),
                    "rank": rank.ravel(),
                    "ci_low": interval.low.ravel(),
                    "ci_high": interval.high.ravel(),
                    "n": len(found),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def methods_table(
    methods: Mapping[str, Method],
    settings: MethodSettings,
    num_layers: int,
    num_targets: int,
    timings: Mapping[str, Mapping[str, float]],
    completeness: Mapping[str, float],
) -> pd.DataFrame:
    """One row a method: what it is and what it costs per picture, in passes as counted and in forward passes as
    measured (``forwards_measured``: its seconds over those of a plain forward pass of the same pictures). What is
    measured differs between runs; nothing else does."""
    rows = []
    for name, method in methods.items():
        forwards, backwards = cost(method, settings, num_layers=num_layers, num_targets=num_targets)
        measured = timings.get(name, {})
        note = "; ".join(part for part in (method.note, "approximate" if method.approximate else "") if part)
        rows.append(
            {
                "method": name,
                "family": method.family,
                "paper": method.paper,
                "signed": method.signed,
                "direction": method.direction,
                "forwards": forwards,
                "backwards": backwards,
                "forwards_measured": measured.get("forwards_measured", np.nan),
                "seconds": measured.get("seconds", np.nan),
                "peak_mb": measured.get("peak_mb", np.nan),
                "completeness_delta": completeness.get(name, np.nan),
                "note": note,
            }
        )
    return pd.DataFrame(rows)


def _with_interval(name: str, interval: Interval) -> dict[str, Floats]:
    return {
        name: interval.value.ravel(),
        f"{name}_ci_low": interval.low.ravel(),
        f"{name}_ci_high": interval.high.ravel(),
    }


def _relative_to_intact(truth: Truth, indices: NDArray[np.integer]) -> Interval:
    """Mean effect in % of the mean intact loss; the interval resamples both together."""
    num_images = len(truth.intact_loss)
    effect = truth.delta_loss.reshape(num_images, -1)
    counts = index_counts(indices, num_images)
    value = 100 * effect.mean(axis=0) / truth.intact_loss.mean()
    low, high = percentile_interval(100 * (counts @ effect) / (counts @ truth.intact_loss)[:, None])
    return Interval(value, low, high)


def _squared_unit_name(target: str, unit: str) -> str:
    suffix = unit.lower()
    return f"{target}2" if suffix and target.endswith(f"_{suffix}") else f"{target}_{suffix or 'unit'}2"
