"""Finished runs of several models, read and held against each other.

Takes folders that ``python -m analysis.compare`` has written; gives their effects and tables, once it is sure that each
is whole, that its tables say what its scores give, and that all are of different models over the same pictures. Does
not know: what is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import Ranking, aggregated, noise_ceiling, random_halves, spearman
from analysis.artists import head_grid
from analysis.manifest import part_of, pictures_done, read_manifest, weights_and_data
from analysis.score_files import read_scores
from analysis.scorecard import oriented
from analysis.tables import read_table, require_all_heads, require_numbers
from attribution.methods import METHODS

Floats = NDArray[np.float64]
TRUTHS = tuple(f"ablation_{kind}" for kind in ("zero", "mean", "resample", "counterfactual", "optimal"))
MEASURED = ("value", "value_cross", "noise_ceiling")
NUM_HALVES = 200  # as analysis.compare draws
OF_METHODS = ["method", "truth", "estimator", "statistic", "value", "ci_low", "ci_high", "value_cross"]
EVERY = "every"  # stands for all models in a table, so no model has this name


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its ``model`` in tables, its manifest, ``effects`` truth -> [image layer head] in % of the label
    variance, its agreement table, and what in it there are no scores to tell from."""

    folder: Path
    model: str
    record: dict[str, Any]
    effects: dict[str, Floats]
    agreement: pd.DataFrame
    unchecked: tuple[str, ...] = ()

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
    record = read_manifest(paths[0])
    weights_and_data(paths[0], record)
    name, config = (part_of(paths[0], record, "model").get(key) for key in ("name", "config"))
    digest = part_of(paths[0], record, "data").get("sha256")
    settings = record.get("settings", {})
    seed = settings.get("seed", 0) if isinstance(settings, dict) else None
    if not (isinstance(name, str) and isinstance(config, dict) and isinstance(digest, str) and type(seed) is int):
        raise ValueError(f"{paths[0]}: expected the manifest of a run (model: name, config; data: sha256; settings)")
    count = part_of(paths[0], record, "pictures").get("total")
    scorecard, agreement = read_table(paths[1]), read_table(paths[2])
    absent = sorted({*OF_METHODS, "noise_ceiling", "n"} - set(agreement))
    if absent:
        raise ValueError(f"{paths[2]}: missing column(s) {', '.join(absent)}")
    known = {truth: f"{truth}_var_pct" for truth in TRUTHS if f"{truth}_var_pct" in scorecard}
    if TRUTHS[0] not in known:
        raise ValueError(f"{paths[1]}: expected swept effects in {TRUTHS[0]}_var_pct (estimates do not do)")
    require_all_heads(scorecard, paths[1])
    require_numbers(scorecard, paths[1], list(known.values()))
    effects = {truth: _effects(folder, truth, head_grid(scorecard, name), count) for truth, name in known.items()}
    pictures_done(paths[0], record)
    unchecked = require_measured(folder, agreement, effects, seed)
    return Run(folder, Path(name).name, record, effects, agreement, unchecked)


def require_measured(
    folder: Path, agreement: pd.DataFrame, effects: Mapping[str, Floats], seed: int
) -> tuple[str, ...]:
    """ValueError naming the row where ``agreement.csv`` says another Spearman (of means) than scores and effects give;
    gives what cannot be told: methods that have no scores here or that this program does not know, truths likewise."""
    truths = {name: found for truth, of in effects.items() for name, found in ((truth, of), (f"{truth}_abs", abs(of)))}
    rows = agreement[(agreement["statistic"] == "spearman") & (agreement["estimator"] == "mean")]
    rows = rows.assign(**{name: pd.to_numeric(rows[name], errors="coerce") for name in ("n", *MEASURED)})
    if not ((rows["n"] >= 2) & np.isfinite(rows["n"]) & (rows["n"] % 1 == 0)).all():
        raise ValueError(f"{folder / 'agreement.csv'}: n: expected numbers of pictures, at least 2")
    unchecked = dict.fromkeys(str(truth) for truth in rows["truth"] if truth not in truths)
    rankings: dict[tuple[str, int], tuple[Ranking, float]] = {}
    for name, found in rows[rows["truth"].isin(list(truths))].groupby("method", sort=False):
        method = str(name)
        path = folder / "scores" / f"{method}.safetensors"
        scores = read_scores(path)[0].get("scores") if method in METHODS and path.is_file() else None
        for truth, number, *stated in found[["truth", "n", *MEASURED]].itertuples(index=False):
            count = int(number)
            if scores is None or len(scores) < count or scores.shape[1:] != truths[truth].shape[1:]:
                unchecked[method] = None
                continue
            whole, (first, second) = np.ones((1, count)), random_halves(count, NUM_HALVES, seed)
            if (truth, count) not in rankings:
                part = truths[truth][:count]
                split = spearman(aggregated(part, first), aggregated(part, second))
                rankings[truth, count] = aggregated(part, np.concatenate([whole, second])), noise_ceiling(split)
            ranking, ceiling = rankings[truth, count]
            turned = oriented(scores[:count].astype(np.float64), METHODS[method])
            rho = spearman(aggregated(turned, np.concatenate([whole, first])), ranking)
            measured = (rho[0], rho[1:].mean(), ceiling)
            if not np.allclose(measured, np.array(stated, dtype=float), rtol=0, atol=1e-6, equal_nan=True):
                expected = ", ".join(f"{key} {value:.6g}" for key, value in zip(MEASURED, measured, strict=True))
                raise ValueError(
                    f"{folder / 'agreement.csv'}: {method}, {truth}, spearman: expected {expected}, as its scores give"
                )
    return tuple(unchecked)


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
        targets, expected = (one.record["model"]["config"].get("target_names") for one in (run, first))
        if targets != expected:
            raise ValueError(f"{run.folder}: reads {targets}, expected {expected} as {first.folder}")
        if run.shape != first.shape:
            sizes = " x ".join(map(str, run.shape)), " x ".join(map(str, first.shape))
            raise ValueError(f"{run.folder}: {sizes[0]} pictures x layers x heads, expected {sizes[1]}")
    if first.shape[0] < 2 or first.shape[1] < 2:
        raise ValueError(f"expected 2 pictures and 2 layers, got {first.shape[0]} and {first.shape[1]}")
    for names in ([run.model for run in runs], [run.folder.resolve().name for run in runs]):
        if len({*names, EVERY}) == len(runs) + 1:
            return [replace(run, model=name) for run, name in zip(runs, names, strict=True)]
    raise ValueError("expected runs whose models or whose folders have different names")


def _effects(folder: Path, truth: str, means: Floats, count: Any) -> Floats:
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
