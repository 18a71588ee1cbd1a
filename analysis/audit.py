"""How much of a layer trend does each fault of a released ablation make? Names, numbers and tables of the audit.

Takes predictions of every scenario (:mod:`attribution.released_procedure`) and labels; gives one row a scenario, one
row a configuration and order, and one row a head for attention maps as released. Computes no predictions.

Increases have two units. ``increase_pct`` is that of the study: % of the procedure's own baseline loss.
``increase_var_pct`` is common to all: % of the label variance, which is 1 for standardised labels and, for labels in
units, the mean over targets of the model's squared label standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from attribution.released_procedure import AS_RELEASED, FAULTS, NONE, Faults, losses, only, scenario_predictions

AS_RELEASED_NAME, TRUE_NAME = "as_released", "true_ablation"
CONFIGURATIONS: dict[str, Faults] = {
    AS_RELEASED_NAME: AS_RELEASED,
    **{f"without_{name}": AS_RELEASED.without(name) for name in FAULTS},
    **{f"only_{name}": only(name) for name in FAULTS},
    TRUE_NAME: NONE,
}
# Repeated in shuffled orders.
SHUFFLED = (AS_RELEASED_NAME,)
# Layers from 0: the study's 1 to 3, 6, and 6 to 12.
EARLY, SIXTH, LATE = range(0, 3), range(5, 6), range(5, 12)
SCENARIO_COLUMNS = (
    *("configuration", "order", "position", "layer", "head", "loss", "baseline_loss"),
    *("increase_pct", "increase_var_pct"),
)
TREND_COLUMNS = (
    *("configuration", "order", *FAULTS, "baseline_loss"),
    *(f"{part}_{unit}" for unit in ("pct", "var_pct") for part in ("early", "sixth", "late")),
    *("sixth_over_early", "late_over_early", "slope_per_layer_pct", "slope_per_layer_var_pct"),
    *("spearman_layer", "spearman_position", "num_unchanged", "num_scenarios"),
)
MAP_COLUMNS = ("layer", "head", "map", "chirp_lift", "share_above_3", "spearman_cls", "n")
MAPS = ("cls", "patch_mean", "as_released", "patch_0")
Head = tuple[int, int]


def order_name(number: int) -> str:
    """The name of an order: 0 is the released code's, the others are shuffled."""
    return "original" if number == 0 else f"shuffled-{number}"


def ordered(scenarios: Sequence[Head], number: int, seed: int) -> list[Head]:
    """The scenarios in an order: as they are for 0, else shuffled, by the seed and the number."""
    if number == 0:
        return list(scenarios)
    return [scenarios[place] for place in np.random.default_rng([seed, number]).permutation(len(scenarios))]


def scenario_rows(
    name: str,
    order: str,
    scenarios: Sequence[Head],
    states: Tensor,
    standardised: Tensor,
    in_units: Tensor,
    label_std: Sequence[float],
    batch_size: int,
) -> pd.DataFrame:
    """One row a scenario, in its order, from the predictions of every state `[1 + scenario image target]`."""
    faults = CONFIGURATIONS[name]
    labels = in_units if faults.raw_labels else standardised
    variance = float(np.mean(np.square(label_std))) if faults.raw_labels else 1.0
    baseline = float(losses(states[:1], labels, batch_size)[0])
    found = losses(scenario_predictions(states, faults, batch_size), labels, batch_size).numpy()
    layer, head = np.array(scenarios).T
    increase = found - baseline
    return pd.DataFrame(
        {
            "configuration": name,
            "order": order,
            "position": np.arange(len(scenarios)),
            "layer": layer,
            "head": head,
            "loss": found,
            "baseline_loss": baseline,
            "increase_pct": 100 * increase / baseline,
            "increase_var_pct": 100 * increase / variance,
        }
    )[list(SCENARIO_COLUMNS)]


def trend_table(scenarios: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration and order (`TREND_COLUMNS`): mean increases of the study's groups of layers, their
    ratios, the least-squares slope over layers, and rank correlations with the layer and with the place in the order.

    NaN where the model has no such layers. ``num_unchanged``: scenarios whose loss is exactly the baseline's.
    """
    rows = []
    for (name, order), found in scenarios.groupby(["configuration", "order"], sort=False):
        row: dict[str, object] = {"configuration": name, "order": order, **asdict(CONFIGURATIONS[str(name)])}
        row["baseline_loss"] = found["baseline_loss"].iloc[0]
        for unit in ("pct", "var_pct"):
            values = found[f"increase_{unit}"]
            for part, layers in (("early", EARLY), ("sixth", SIXTH), ("late", LATE)):
                here = found["layer"].isin(list(layers))
                is_whole = set(layers) <= set(found["layer"])
                row[f"{part}_{unit}"] = values[here].mean() if is_whole else np.nan
            row[f"slope_per_layer_{unit}"] = np.polyfit(found["layer"], values, 1)[0]
        early = float(row["early_var_pct"])  # type: ignore[arg-type]
        for part in ("sixth", "late"):
            row[f"{part}_over_early"] = float(row[f"{part}_var_pct"]) / early if early else np.nan  # type: ignore[arg-type]
        for what in ("layer", "position"):
            constant = found["increase_pct"].nunique() < 2
            row[f"spearman_{what}"] = np.nan if constant else spearmanr(found[what], found["increase_pct"]).statistic
        row["num_unchanged"] = int((found["loss"] == found["baseline_loss"]).sum())
        row["num_scenarios"] = len(found)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TREND_COLUMNS))


def read_maps(layers: Sequence[Tensor], num_special_tokens: int) -> dict[str, Tensor]:
    """Maps `[image layer head patch]` that sum to 1, from attention weights `[image head query key]` of every layer.

    ``cls``: the row that the prediction is read from. ``patch_mean``: the mean of the patch queries. ``as_released``:
    that mean min-max scaled, as `Attention-Maps-Extraction` 0.1.4 shows it. ``patch_0``: the query of the first patch,
    the top left corner, which its overlay shows.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in MAPS}
    for weights in layers:
        patches = weights[..., num_special_tokens:]
        mean = patches[:, :, num_special_tokens:].mean(dim=2)
        low, high = mean.amin(-1, keepdim=True), mean.amax(-1, keepdim=True)
        found["cls"].append(patches[:, :, 0])
        found["patch_mean"].append(mean)
        found["as_released"].append((mean - low) / (high - low))
        found["patch_0"].append(patches[:, :, num_special_tokens])
    stacked = {name: torch.stack(parts, dim=1) for name, parts in found.items()}
    return {name: maps / maps.sum(-1, keepdim=True) for name, maps in stacked.items()}


def map_table(maps: Mapping[str, NDArray[np.floating]], chirp: NDArray[np.bool_]) -> pd.DataFrame:
    """One row a head and kind of map: lift on the chirp, mean over the pictures that show it and the share of those
    with 3 or more, and the mean over pictures of the rank correlation with the map of the CLS query.

    ``maps`` [image layer head patch] of :func:`read_maps`; ``chirp`` [image patch].
    """
    shown = chirp.any(axis=1)
    if not shown.any():
        raise ValueError("maps: expected pictures with a chirp, none of them shows one")
    share = chirp[shown].mean(axis=1)
    ranks = {name: _ranks(values) for name, values in maps.items()}
    rows = []
    for name in MAPS:
        lift = np.einsum("ilhp,ip->ilh", maps[name][shown], chirp[shown]) / share[:, None, None]
        correlation = (ranks[name] * ranks["cls"]).sum(axis=-1).mean(axis=0)
        for layer, head in np.ndindex(*lift.shape[1:]):
            at = lift[:, layer, head]
            rows.append((layer, head, name, at.mean(), (at >= 3).mean(), correlation[layer, head], int(shown.sum())))
    return pd.DataFrame(rows, columns=list(MAP_COLUMNS))


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks along the last axis, centred and of length 1: their dot product is Spearman's correlation (no ties)."""
    ranks = np.argsort(np.argsort(values, axis=-1), axis=-1).astype(np.float64)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    return ranks / np.linalg.norm(ranks, axis=-1, keepdims=True)
