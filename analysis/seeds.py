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
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.agreement import Ranking, agreement_table, kendall, rank_scores, spearman
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
            return [replace(run, model=name) for run, name in zip(runs, names, strict=True)]
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
                if all((truth, name) in known[one.model] for one in (a, b) for name in both):
                    x, y = (np.stack([known[one.model][truth, name] for name in both], axis=1) for one in (a, b))
                    found = _order_agreement(x[1:], y[1:])
                    low, high = centred_interval(np.array([row["value"]]), found[:, None])
                    row |= {"ci_low": max(low[0], -1.0), "ci_high": min(high[0], 1.0)}
            rows.append(row | {"num_methods": len(both), "n": indices.shape[1]})
    return pd.DataFrame(rows)


def _order_agreement(a: Floats, b: Floats) -> Floats:
    # Rounded, as ties are not to hang on the last digit.
    x, y = (rank_scores(np.round(values, 12)[:, None]) for values in (a, b))
    return kendall(x, y)


def _resampled(run: Run, methods: pd.DataFrame, counts: Floats) -> dict[tuple[str, str], Floats]:
    """(truth, method) -> Spearman [row] under each row of counts, of which the first is the table's own.

    A method on the first pictures alone meets the truth on those; a resample holds those of them that it drew.
    """
    found: dict[tuple[str, str], Floats] = {}
    for name, count in dict.fromkeys(zip(methods["method"].map(str), methods["n"].map(int), strict=True)):
        rows = methods[(methods["method"] == name) & (methods["n"] == count)]
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


def _ranked(scores: Floats, counts: Floats) -> Ranking:
    columns = scores.reshape(len(scores), -1)
    means = ESTIMATORS["mean"](columns, counts[:, : len(scores)])
    return rank_scores(means.reshape(-1, *scores.shape[1:]))


@dataclass(frozen=True)
class Parts:
    """Which layers the statements speak of, as slices, and their names."""

    first_quarter: slice
    last_quarter: slice
    second_half: slice

    @staticmethod
    def of(num_layers: int) -> Parts:
        """Quarters are rounded down, but a layer at least; the second half begins at layer num_layers // 2."""
        quarter = max(1, num_layers // 4)
        return Parts(slice(0, quarter), slice(num_layers - quarter, num_layers), slice(num_layers // 2, num_layers))

    @staticmethod
    def name(part: slice) -> str:
        return f"L{part.start}" if part.stop - part.start == 1 else f"L{part.start}-L{part.stop - 1}"


def statement_texts(num_layers: int) -> dict[str, str]:
    """What each statement says and when it holds, by name."""
    parts = Parts.of(num_layers)
    first, last, second = map(Parts.name, (parts.first_quarter, parts.last_quarter, parts.second_half))
    above = "its 95 % interval is above 0"
    return {
        "last_above_first_quarter": f"mean effect of {last} minus that of {first}; holds if {above}",
        "second_half_to_first_quarter": f"mean effect of {second} over that of {first}; "
        f"no interval where that of {first} reaches 0",
        "effect_rises_with_depth": f"Spearman of mean effect and depth over layers; holds if {above}",
        "largest_layer": "layer with the largest mean effect; holds if it is the same in every model",
        "first_quarter_share": f"share of {first} in the sum of the positive mean effects of heads",
    }


def statements_table(runs: Sequence[Run], indices: NDArray[np.integer]) -> pd.DataFrame:
    """``statements``: each statement of :func:`statement_texts` in every model, then whether it holds in all of them.

    The effect of a layer is that of ``layers_by_seed``, under each estimator; differences and ratios of them have
    intervals over pictures, each resample used for all layers. ``holds`` is empty for what is only a number.
    """
    rows: list[dict[str, Any]] = []
    texts = statement_texts(runs[0].shape[1])
    for truth in shared_truths(runs):
        for estimator in ESTIMATORS:
            found = {run.model: _statements(run.effects[truth], estimator, indices) for run in runs}
            for name, text in texts.items():
                of = {"statement": name, "truth": truth, "estimator": estimator}
                numbers = {model: statements[name] for model, statements in found.items()}
                tested = name in ("last_above_first_quarter", "effect_rises_with_depth")
                for model, (value, low, high) in numbers.items():
                    holds = bool(low > 0) if tested else None
                    row = {"model": model, "value": value, "ci_low": low, "ci_high": high, "holds": holds}
                    rows.append(of | row | {"n": runs[0].shape[0], "text": text})
                values = {value for value, _, _ in numbers.values()}
                every = all(low > 0 for _, low, _ in numbers.values()) if tested else None
                if name == "largest_layer":
                    every = len(values) == 1
                value = values.pop() if name == "largest_layer" and every else np.nan
                row = {"model": EVERY, "value": value, "ci_low": np.nan, "ci_high": np.nan, "holds": every}
                rows.append(of | row | {"n": runs[0].shape[0], "text": text})
    return pd.DataFrame(rows).astype({"holds": object})


def _statements(effects: Floats, estimator: str, indices: NDArray[np.integer]) -> dict[str, tuple[float, float, float]]:
    """Value and 95 % limits of each statement from effects [image layer head] of one model."""
    num_images, num_layers, num_heads = effects.shape
    parts, function = Parts.of(num_layers), ESTIMATORS[estimator]
    counts = np.concatenate([np.ones((1, num_images)), index_counts(indices, num_images), all_but_one(num_images)])
    layers = function(effects.mean(axis=2), counts)  # [row layer]
    positive = np.maximum(function(effects.reshape(num_images, -1), counts), 0).reshape(-1, num_layers, num_heads)
    first, last, second = (
        layers[:, part].mean(axis=1) for part in (parts.first_quarter, parts.last_quarter, parts.second_half)
    )
    depth = rank_scores(np.arange(num_layers, dtype=np.float64)[None, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(first > 0, second / first, np.nan)
        share = positive[:, parts.first_quarter].sum(axis=(1, 2)) / positive.sum(axis=(1, 2))
    # A ratio to what may be nothing is bounded by nothing.
    ratio_limits = _bca(ratio, len(indices)) if _bca(first, len(indices))[1] > 0 else (ratio[0], np.nan, np.nan)
    largest = layers.argmax(axis=1)[: 1 + len(indices)].astype(np.float64)
    in_order = np.sort(largest[1:])  # limits are layers that were drawn, the outer ones where 95 % ends between two
    cut = 0.025 * (len(in_order) - 1)
    layer_limits = in_order[int(cut)], in_order[len(in_order) - 1 - int(cut)]
    return {
        "last_above_first_quarter": _bca(last - first, len(indices)),
        "second_half_to_first_quarter": (float(ratio_limits[0]), ratio_limits[1], ratio_limits[2]),
        "effect_rises_with_depth": _centred(spearman(rank_scores(layers[:, None]), depth), len(indices), -1.0),
        "largest_layer": (float(largest[0]), float(layer_limits[0]), float(layer_limits[1])),
        # Noise has a positive part, so resamples lie above the value where true effects are small.
        "first_quarter_share": _centred(share, len(indices), 0.0),
    }


def _bca(rows: Floats, num_replicates: int) -> tuple[float, float, float]:
    """Value and BCa limits from rows: the value, the replicates, the jackknife."""
    point, replicates, jackknife = np.split(rows[:, None], [1, 1 + num_replicates])
    low, high = bca_interval(replicates, point[0], jackknife)
    return float(point[0, 0]), float(low[0]), float(high[0])


def _centred(rows: Floats, num_replicates: int, least: float) -> tuple[float, float, float]:
    """Value and centred limits, cut at ``least`` and 1, from rows: the value, the replicates, others."""
    point, replicates, _ = np.split(rows[:, None], [1, 1 + num_replicates])
    low, high = np.clip(centred_interval(point[0], replicates), least, 1.0)[:, 0]
    return float(point[0, 0]), float(low), float(high)


def short_answer(runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> list[str]:
    """What the tables say of means of zero ablation, in lines."""
    num_images, num_layers, num_heads = runs[0].shape
    lines = [
        f"{len(runs)} models ({', '.join(run.model for run in runs)}), {num_layers} layers of {num_heads} heads, the "
        f"same {num_images} pictures; zero ablation, means, in % of the label variance."
    ]
    statements = tables["statements"]
    statements = statements[(statements["truth"] == TRUTHS[0]) & (statements["estimator"] == "mean")]
    for name, text in statement_texts(num_layers).items():
        rows = statements[statements["statement"] == name].set_index("model")
        shown = ", ".join(
            f"{model} {row['value']:.3g} ({row['ci_low']:.3g} to {row['ci_high']:.3g})"
            for model, row in rows.drop(index=EVERY).iterrows()
        ).replace("nan to nan", "no interval")
        every = rows["holds"].get(EVERY)
        verdict = "" if every is None else f" In every model: {'yes' if every else 'no'}."
        lines.append(f"{text[0].upper()}{text[1:]}: {shown}.{verdict}")
    heads = tables["seed_agreement"]
    for _, row in heads[
        (heads["truth"] == TRUTHS[0]) & (heads["estimator"] == "mean") & (heads["statistic"] == "spearman")
    ].iterrows():
        lines.append(
            f"Heads of {row['model_a']} and {row['model_b']}: Spearman {row['value']:.2f} ({row['ci_low']:.2f} to "
            f"{row['ci_high']:.2f}); on different pictures {row['value_cross']:.2f}, at most "
            f"{row['noise_ceiling']:.2f} with this noise."
        )
    orders = tables["method_order_by_seed"]
    for _, row in orders[orders["truth"] == TRUTHS[0]].dropna(subset=["value"]).iterrows():
        limits = "" if np.isnan(row["ci_low"]) else f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})"
        lines.append(
            f"Order of {row['num_methods']} methods in {row['model_a']} and {row['model_b']}: Kendall "
            f"{row['value']:.2f}{limits}."
        )
    partial = sorted({truth for run in runs for truth in run.effects} - set(shared_truths(runs)))
    if partial:
        lines.append(f"Not in every run, so not compared: {', '.join(partial)}.")
    controls = [run.model for run in runs if run.record["model"].get("control")]
    if controls:
        lines.append(f"CONTROL RUNS, random weights, whose heads mean nothing: {', '.join(controls)}.")
    caution = indicative(num_images)
    return lines + ([f"{caution[0].upper()}{caution[1:]}."] if caution else [])


def compare_seeds(runs: Sequence[Run], replicates: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table, by file name."""
    indices = bootstrap_indices(runs[0].shape[0], replicates, seed=seed)
    methods = methods_table(runs)
    return {
        "layers_by_seed": layers_table(runs, indices),
        "methods_by_seed": methods,
        "heads_by_seed": heads_table(runs),
        "seed_agreement": seed_agreement_table(runs, indices, seed),
        "method_order_by_seed": method_order_table(runs, methods, indices),
        "statements": statements_table(runs, indices),
    }


def write_figures(folder: Path, runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> None:
    """``figures/seeds_<truth>.png`` and ``.svg`` for every truth that all runs have, effects and methods alike."""
    from analysis.check_plots import seeds_side_by_side

    layers, methods = tables["layers_by_seed"], tables["methods_by_seed"]
    folder.mkdir(parents=True, exist_ok=True)
    for truth in shared_truths(runs):
        if truth in set(methods["truth"]):
            figure = seeds_side_by_side(layers[layers["estimator"] == "mean"], methods, truth=truth)
            save_figure(figure, folder / f"seeds_{truth}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.seeds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="finished runs of analysis.compare")
    parser.add_argument("--output-dir", type=Path, default=Path("results/seeds"))
    parser.add_argument("--bootstrap-replicates", type=int, default=2000, help="resamples behind every interval")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    options = parser.parse_args(argv)
    folder: Path = options.output_dir
    try:
        runs = read_runs(options.runs)
        if (folder / "head_scorecard.csv").exists():
            raise ValueError(f"--output-dir {folder}: the folder of a run, expected another")
        tables = compare_seeds(runs, options.bootstrap_replicates, options.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # comes back last: without it a folder is not finished
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        write_figures(folder / "figures", runs, tables)
        record = _manifest(runs, {"bootstrap_replicates": options.bootstrap_replicates, "seed": options.seed})
        write_atomically(folder / "manifest.json", (json.dumps(record, indent=2) + "\n").encode())
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join([*short_answer(runs, tables), f"All of it: {folder}"]))
    return 0


def _manifest(runs: Sequence[Run], settings: dict[str, int]) -> dict[str, Any]:
    return {
        "runs": [
            {
                "model": run.model,
                "folder": run.folder.resolve().name,
                "name": run.record["model"]["name"],
                "weights_sha256": run.record["model"]["weights_sha256"],
                "truths": list(run.effects),
                "git": run.record.get("git", {}),
            }
            for run in runs
        ],
        "data": runs[0].record["data"],
        "pictures": runs[0].shape[0],
        "settings": settings,
        "versions": versions(),
        "git": git_state(),
    }


if __name__ == "__main__":
    sys.exit(main())
