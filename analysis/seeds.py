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
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.agreement import aggregated, agreement_table, kendall, rank_scores, spearman
from analysis.artists import CONTROLS, save_figure
from analysis.intervals import (
    ESTIMATORS,
    bootstrap_indices,
    centred_interval,
    index_counts,
    indicative,
    interval_over_images,
)
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, figure_files, finish_writing, held, read_record, require_own, start_writing
from analysis.score_files import read_scores
from analysis.scorecard import oriented, ranks
from analysis.seed_runs import TRUTHS, Floats, Run, read_runs, shared_truths
from analysis.seed_statements import statement_lines, statements_table
from analysis.tables import write_table
from attribution.methods import METHODS
from attribution.own_folder import require_folder_name

COMMAND = "analysis.seeds"
TABLES = (
    *("layers_by_seed", "methods_by_seed", "heads_by_seed", "seed_agreement", "method_order_by_seed"),
    "statements",
)
OF_HEADS = ("spearman", "spearman_within_layers", "top_10")


def layers_table(runs: Sequence[Run], indices: NDArray[np.integer]) -> pd.DataFrame:
    """``layers_by_seed``: effect of a layer's heads, averaged in each picture, then over pictures.

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
        drawn = counts[:, :count]
        ranking = aggregated(oriented(scores.astype(np.float64), METHODS[name]), drawn)
        for truth, value in zip(rows["truth"], rows["spearman"], strict=True):
            if truth in run.effects:
                rho = spearman(ranking, aggregated(run.effects[truth][:count], drawn))
                if np.isclose(rho[0], value, rtol=0, atol=1e-6):
                    found[truth, name] = rho
    return found


def short_answer(runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> list[str]:
    """What the tables say of means of zero ablation, in lines."""
    num_images, num_layers, num_heads = runs[0].shape
    lines = [
        f"{len(runs)} models ({', '.join(run.model for run in runs)}), {num_layers} layers of {num_heads} heads, the "
        f"same {num_images} pictures; zero ablation, means, in % of the label variance."
    ]
    lines += statement_lines(tables["statements"], num_layers)
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
    unchecked = sorted({name for run in runs for name in run.unchecked})
    if unchecked:
        lines.append(f"As their tables say, for want of scores to tell it from: {', '.join(unchecked)}.")
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


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write. Manifests of an earlier make name no command."""
    names = (*(f"{name}.csv" for name in TABLES), *figure_files(f"seeds_{truth}" for truth in TRUTHS))
    earlier = {"runs", "data", "pictures", "settings", "versions", "git"}
    return Outputs(folder, COMMAND, names, earlier=lambda: set(read_record(folder / "manifest.json")) == earlier)


def draw_figures(runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """``seeds_<truth>`` -> its figure, for every truth that all runs have, effects and methods alike."""
    from analysis.seed_plots import seeds_side_by_side

    layers, methods = tables["layers_by_seed"], tables["methods_by_seed"]
    means = layers[layers["estimator"] == "mean"]
    truths = [truth for truth in shared_truths(runs) if truth in set(methods["truth"])]
    return {f"seeds_{truth}": seeds_side_by_side(means, methods, truth=truth) for truth in truths}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.seeds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="finished runs of analysis.compare")
    parser.add_argument("--output-dir", default="results/seeds")
    parser.add_argument("--bootstrap-replicates", type=int, default=2000, help="resamples behind every interval")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    options = parser.parse_args(argv)
    try:
        folder = require_folder_name(options.output_dir)
        if options.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {options.seed}")
        outputs = outputs_of(folder)
        require_own(outputs, options.runs)
        runs = read_runs(options.runs)
        tables = compare_seeds(runs, options.bootstrap_replicates, options.seed)
        figures = draw_figures(runs, tables)
        record = _manifest(runs, {"bootstrap_replicates": options.bootstrap_replicates, "seed": options.seed})
        with held(outputs):
            start_writing(outputs)
            for name, table in tables.items():
                write_table(table, folder / f"{name}.csv")
            (folder / "figures").mkdir(exist_ok=True)
            for name, figure in figures.items():
                save_figure(figure, folder / "figures" / name)
            finish_writing(outputs, record)
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
