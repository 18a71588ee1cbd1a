"""Does it hold for every fine-tuning? Finished runs of several models over the same pictures, side by side.

examples:
  python -m analysis.seeds results/reference results/seed-1-default-128 results/seed-2-default-128
  python -m analysis.seeds results/one results/two --output-dir results/seeds-of-mine --bootstrap-replicates 500

Takes folders that python -m analysis.compare has written, one for each model (seed). Writes layers_by_seed.csv,
methods_by_seed.csv, heads_by_seed.csv, seed_agreement.csv (do models agree on their heads?), method_order_by_seed.csv
(do they agree on the order of methods?), statements.csv (statements about layers: each holds only if it holds in every
model), figures and manifest.json. Effects are in % of the label variance of each model's own training. Loads no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.agreement import agreement_table, kendall, rank_scores, spearman
from analysis.artists import CONTROLS, head_grid, save_figure
from analysis.intervals import (
    ESTIMATORS,
    all_but_one,
    bca_interval,
    bootstrap_indices,
    centred_interval,
    index_counts,
    indicative,
    interval_over_images,
)
from analysis.manifest import git_state, versions
from analysis.report import write_atomically
from analysis.score_files import read_scores
from analysis.scorecard import oriented, ranks
from analysis.tables import read_table, write_table
from attribution.methods import METHODS

Floats = NDArray[np.float64]
TRUTHS = tuple(f"ablation_{kind}" for kind in ("zero", "mean", "resample", "counterfactual"))
OF_HEADS = ("spearman", "spearman_within_layers", "top_10")
OF_METHODS = ["method", "truth", "estimator", "statistic", "value", "ci_low", "ci_high", "value_cross"]
EVERY = "every"


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its ``model`` in tables, its manifest, ``effects`` truth -> [image layer head] in % of the label
    variance, and its agreement table."""

    folder: Path
    model: str
    record: dict[str, Any]
    effects: dict[str, Floats]
    agreement: pd.DataFrame

    @property
    def shape(self) -> tuple[int, ...]:
        """Pictures, layers, heads."""
        return next(iter(self.effects.values())).shape


def read_run(folder: Path) -> Run:
    """A run as it lies in its folder. Raises ValueError for whatever is missing or does not belong together."""
    paths = [folder / name for name in ("manifest.json", "head_scorecard.csv", "agreement.csv")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder}: expected a finished run of analysis.compare, missing {', '.join(missing)}")
    try:
        record = json.loads(paths[0].read_text(encoding="utf-8"))
        name = str(record["model"]["name"])
        count, _, _ = record["pictures"]["total"], record["data"]["sha256"], record["model"]["weights_sha256"]
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{paths[0]}: expected the manifest of a run ({error!r})") from error
    scorecard, agreement = read_table(paths[1]), read_table(paths[2])
    absent = sorted({*OF_METHODS, "noise_ceiling", "n"} - set(agreement))
    if absent:
        raise ValueError(f"{paths[2]}: missing column(s) {', '.join(absent)}")
    known = {truth: f"{truth}_var_pct" for truth in TRUTHS if f"{truth}_var_pct" in scorecard}
    if TRUTHS[0] not in known:
        raise ValueError(f"{paths[1]}: expected swept effects in {TRUTHS[0]}_var_pct (estimates do not do)")
    effects = {truth: _effects(folder, truth, head_grid(scorecard, name), count) for truth, name in known.items()}
    return Run(folder, Path(name).name, record, effects, agreement)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs of different models over the same pictures; ValueError where they are not. Named by model, or by folder
    where models share a name."""
    if len(folders) < 2:
        raise ValueError(f"expected at least 2 run folders, got {len(folders)}")
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    for place, run in enumerate(runs):
        for other in runs[:place]:
            if run.record["model"]["weights_sha256"] == other.record["model"]["weights_sha256"]:
                raise ValueError(f"{run.folder}: the same weights as {other.folder}, expected another model")
        data, wanted = run.record["data"], first.record["data"]
        if data != wanted:
            differing = sorted(key for key in {*data, *wanted} if data.get(key) != wanted.get(key))
            raise ValueError(f"{run.folder}: other pictures than {first.folder} (data: {', '.join(differing)} differ)")
        targets, expected = (one.record["model"].get("config", {}).get("target_names") for one in (run, first))
        if targets != expected:
            raise ValueError(f"{run.folder}: reads {targets}, expected {expected} as {first.folder}")
        if run.shape != first.shape:
            sizes = " x ".join(map(str, run.shape)), " x ".join(map(str, first.shape))
            raise ValueError(f"{run.folder}: {sizes[0]} pictures x layers x heads, expected {sizes[1]}")
    if first.shape[0] < 2 or first.shape[1] < 2:
        raise ValueError(f"expected 2 pictures and 2 layers, got {first.shape[0]} and {first.shape[1]}")
    for names in ([run.model for run in runs], [run.folder.resolve().name for run in runs]):
        if len({*names, EVERY}) == len(runs) + 1:
            return [Run(run.folder, name, run.record, run.effects, run.agreement) for run, name in zip(runs, names)]  # noqa: B905
    raise ValueError("expected runs whose models or whose folders have different names")


def _effects(folder: Path, truth: str, means: Floats, count: int) -> Floats:
    """Effects [image layer head] in % of the label variance, which must have these ``means`` [layer head]."""
    path = folder / "scores" / f"{truth}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: missing, expected effects per picture")
    found = read_scores(path)[0].get("delta_loss")
    if found is None or found.shape != (count, *means.shape):
        shape = None if found is None else list(found.shape)
        raise ValueError(f"{path}: expected delta_loss [image layer head] {[count, *means.shape]}, got {shape}")
    effects = 100 * found.astype(np.float64)
    if not np.allclose(effects.mean(axis=0), means, rtol=1e-6, atol=1e-8):
        raise ValueError(f"{path}: its means are not those of head_scorecard.csv, expected scores of the same run")
    return effects


def shared_truths(runs: Sequence[Run]) -> list[str]:
    """Truths that every run has, zero ablation first."""
    return [truth for truth in TRUTHS if all(truth in run.effects for run in runs)]


def layers_table(runs: Sequence[Run], indices: NDArray[np.integer]) -> pd.DataFrame:
    """``layers_by_seed``: effect of a layer's heads, averaged in each picture, then over pictures; BCa intervals.

    The trimmed mean leaves out pictures by the mean effect of the layer's heads.
    """
    parts = []
    for run in runs:
        for truth, effects in run.effects.items():
            for estimator in ESTIMATORS:
                found = interval_over_images(effects.mean(axis=2), indices, estimator=estimator)
                columns = {"effect_var_pct": found.value, "ci_low": found.low, "ci_high": found.high}
                part = pd.DataFrame({"layer": range(run.shape[1])} | columns)
                parts.append(part.assign(model=run.model, truth=truth, estimator=estimator, n=run.shape[0]))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", "layer", "truth", "estimator", "effect_var_pct", "ci_low", "ci_high", "n"]]


def methods_table(runs: Sequence[Run]) -> pd.DataFrame:
    """``methods_by_seed``: Spearman of each method with each truth; ``rank`` among the methods of a model and truth,
    controls included, 1 = closest, ties share their average."""
    parts = []
    for run in runs:
        found = run.agreement[(run.agreement["statistic"] == "spearman") & (run.agreement["estimator"] == "mean")]
        found = found.drop(columns=["statistic", "estimator"]).rename(columns={"value": "spearman"})
        rank = found.groupby("truth", sort=False)["spearman"].rank(ascending=False)
        parts.append(found.assign(model=run.model, rank=rank))
    columns = ["model", "method", "truth", "spearman", "ci_low", "ci_high", "value_cross", "noise_ceiling", "n", "rank"]
    return pd.concat(parts, ignore_index=True)[columns]


def heads_table(runs: Sequence[Run]) -> pd.DataFrame:
    """``heads_by_seed``: one row a truth and head; mean effect and rank (1 = matters most) in each model."""
    parts = []
    for truth in shared_truths(runs):
        layer, head = (part.ravel() for part in np.indices(runs[0].shape[1:]))
        means = {run.model: run.effects[truth].mean(axis=0) for run in runs}
        columns = {f"effect_var_pct_{model}": mean.ravel() for model, mean in means.items()}
        columns |= {f"rank_{model}": ranks(mean).ravel() for model, mean in means.items()}
        parts.append(pd.DataFrame({"truth": truth, "layer": layer, "head": head} | columns))
    return pd.concat(parts, ignore_index=True)


def seed_agreement_table(runs: Sequence[Run], indices: NDArray[np.integer], seed: int) -> pd.DataFrame:
    """``seed_agreement``: do two models agree on their heads? A bootstrap draws the same pictures for both.

    ``value_cross``: each model on its own half of the pictures; ``noise_ceiling`` bounds it, as the noise in both
    models' effects does: were their heads alike, it would come near. √(split-half of a · split-half of b).
    """
    parts = []
    for a, b in combinations(runs, 2):
        for truth in shared_truths(runs):
            x, y = {a.model: a.effects[truth]}, {b.model: b.effects[truth]}
            signed = {a.model: True, b.model: True}
            found = agreement_table(y, x, signed, indices, seed)
            reverse = agreement_table(x, y, signed, indices[:1], seed)  # its ceiling alone is wanted
            found["noise_ceiling"] *= reverse["noise_ceiling"]
            found = found[found["statistic"].isin(OF_HEADS)].rename(columns={"truth": "model_a", "method": "model_b"})
            parts.append(found.assign(truth=truth))
    columns = ["model_a", "model_b", "truth", "estimator", "statistic", "value", "ci_low", "ci_high", "value_cross"]
    return pd.concat(parts, ignore_index=True)[[*columns, "noise_ceiling", "n"]]


def method_order_table(runs: Sequence[Run], methods: pd.DataFrame, indices: NDArray[np.integer]) -> pd.DataFrame:
    """``method_order_by_seed``: Kendall's τ-b of the orders in which two models put the methods, controls left out.

    From ``methods_by_seed``, over methods that both have. The interval draws the same pictures for both models and
    ranks heads and methods anew; empty where the scores per picture do not give the value of the table.
    """
    controls = {*CONTROLS, *(name for name, method in METHODS.items() if method.family == "control")}
    trial = methods[~methods["method"].isin(controls)].dropna(subset=["spearman"])
    counts = np.concatenate([np.ones((1, indices.shape[1])), index_counts(indices, indices.shape[1])])
    known = {run.model: _resampled(run, trial[trial["model"] == run.model], counts) for run in runs}
    rows = []
    for a, b in combinations(runs, 2):
        for truth in shared_truths(runs):
            of = trial[trial["truth"] == truth].set_index(["model", "method"])["spearman"]
            both = [name for name in of.get(a.model, pd.Series()).index if (b.model, name) in of.index]
            row: dict[str, Any] = {"model_a": a.model, "model_b": b.model, "truth": truth, "statistic": "kendall"}
            row |= {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan}
            if len(both) >= 2:
                points = [np.array([[of[one.model, name] for name in both]]) for one in (a, b)]
                row["value"] = _order_agreement(*points)[0]
                resampled = [known[one.model].get((truth, name)) for one in (a, b) for name in both]
                if all(found is not None for found in resampled):
                    x, y = np.split(np.stack(resampled, axis=1), 2, axis=1)
                    found = _order_agreement(x[1:], y[1:])
                    low, high = centred_interval(np.array([row["value"]]), found[:, None])
                    row |= {"ci_low": max(low[0], -1.0), "ci_high": min(high[0], 1.0)}
            rows.append(row | {"num_methods": len(both), "n": indices.shape[1]})
    return pd.DataFrame(rows)


def _order_agreement(a: Floats, b: Floats) -> Floats:
    return kendall(rank_scores(a[:, None]), rank_scores(b[:, None]))


def _resampled(run: Run, methods: pd.DataFrame, counts: Floats) -> dict[tuple[str, str], Floats]:
    """(truth, method) -> Spearman [row] under each row of counts, of which the first is the table's own.

    A method on the first pictures alone meets the truth on those; a resample holds those of them that it drew.
    """
    found: dict[tuple[str, str], Floats] = {}
    for (name, count), rows in methods.groupby(["method", "n"], sort=False):
        path = run.folder / "scores" / f"{name}.safetensors"
        scores = read_scores(path)[0].get("scores") if name in METHODS and path.is_file() else None
        if scores is None or scores.shape != (count, *run.shape[1:]):
            continue
        ranking = _ranked(oriented(scores.astype(np.float64), METHODS[name]), counts)
        for truth, value in zip(rows["truth"], rows["spearman"], strict=True):
            if truth in run.effects:
                rho = spearman(ranking, _ranked(run.effects[truth][:count], counts))
                if np.isclose(rho[0], value, rtol=0, atol=1e-6):
                    found[truth, name] = rho
    return found


def _ranked(scores: Floats, counts: Floats) -> Any:
    columns = scores.reshape(len(scores), -1)
    means = ESTIMATORS["mean"](columns, counts[:, : len(scores)])
    return rank_scores(means.reshape(-1, *scores.shape[1:]))
