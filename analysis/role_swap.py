"""A control of everything said of heads: ask the same pictures something else, and what matters must move.

examples:
  python -m data_synth --preset colorbar --split test --count 128 --out chirps-with-bars
  python -m analysis.compare --data chirps-with-bars --num-pictures 128 --output-dir results/reads-chirp
  python -m analysis.compare --model attribution/models/colorbar --data colorbar --num-pictures 128 \\
      --output-dir results/reads-colorbar
  python -m analysis.role_swap results/reads-chirp results/reads-colorbar

Takes two finished runs of python -m analysis.compare, one of a model that reads the chirp, one of a model that reads
the colour bar's maximum off the same pictures, which one of them takes from a folder. Writes role_swap.csv and
role_swap.png: where the heads that matter look, in each. Loads no model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.artists import save_figure
from analysis.manifest import git_state, part_of, pictures_done, read_manifest, versions
from analysis.own_files import Outputs, figure_files, finish_writing, held, require_own, start_writing
from analysis.role_plots import role_swap_dots
from analysis.tables import read_table, require_all_heads, require_numbers, write_table
from attribution.own_folder import require_folder_name

EFFECT = "ablation_zero_var_pct"
REGIONS = ("chirp", "colorbar", "colorbar_ticks", "text", "frame")
TOP = 10
COLUMNS = (
    *("run", "data", "query", "region", "lift_of_what_matters", "lift_of_all", "ratio", "lift_of_top_10"),
    *("spearman_effect_lift", "num_top_10_above_3", "heads"),
)


def read_run(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Manifest, scorecard and lifts of a finished run: of every head an effect, and of every query and region a lift
    (NaN where there is none). ValueError or OSError with one line for what is missing."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    record = read_manifest(manifest)
    tables = []
    for name, columns in (
        ("head_scorecard", ("layer", "head", EFFECT)),
        ("localization", ("layer", "head", "query", "region", "metric", "value")),
    ):
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; the run needs pictures with masks")
        table = read_table(path, texts=("query", "region", "metric"))
        missing = [column for column in columns if column not in table]
        if missing:
            raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
        tables.append(table)
    scorecard, localization = tables
    num_layers, num_heads = require_all_heads(scorecard, folder / "head_scorecard.csv")
    require_numbers(scorecard, folder / "head_scorecard.csv", [EFFECT])
    path = folder / "localization.csv"
    lifts = localization[localization["metric"] == "lift"]
    if not lifts["region"].isin(REGIONS).any():
        raise ValueError(f"{path}: expected rows of the metric lift for {', '.join(REGIONS)}, got none")
    require_numbers(localization, path, ("layer", "head"), whole=True)
    require_numbers(localization[localization["value"].notna()], path, ["value"])  # NaN: no picture shows the region
    for (query, region), found in lifts.groupby(["query", "region"]):
        if require_all_heads(found, path) != (num_layers, num_heads):
            raise ValueError(
                f"{path}: lift, {query}, {region}: expected {num_layers} layers x {num_heads} heads, as the scorecard"
            )
    return record, scorecard, lifts


def swap_rows(name: str, data: str, scorecard: pd.DataFrame, lifts: pd.DataFrame) -> list[tuple[object, ...]]:
    """One row a query and region (`COLUMNS`).

    ``lift_of_what_matters``: mean lift over heads, weighted by the effect of setting them to zero (harmful heads, whose
    effect is negative, weigh nothing); ``lift_of_all``: unweighted; ``ratio`` of the two: above 1, heads that matter
    look there more than heads do. ``lift_of_top_10``: mean of the ten with the largest effect; ``num_top_10_above_3``
    of them with a lift of at least 3.
    """
    rows: list[tuple[object, ...]] = []
    for query in dict.fromkeys(lifts["query"]):
        for region in REGIONS:
            found = lifts[(lifts["query"] == query) & (lifts["region"] == region)][["layer", "head", "value"]]
            both = scorecard.merge(found, on=["layer", "head"], validate="one_to_one").dropna(subset=["value"])
            if both.empty:
                continue
            effect, lift = both[EFFECT].to_numpy(float), both["value"].to_numpy(float)
            weights = np.clip(effect, 0, None)
            mattering = float((weights * lift).sum() / weights.sum()) if weights.any() else np.nan
            top = lift[np.argsort(-effect, kind="stable")[:TOP]]
            rho = float(spearmanr(effect, lift).statistic) if np.ptp(lift) > 0 and np.ptp(effect) > 0 else np.nan
            everywhere = float(lift.mean())
            ratio = mattering / everywhere if everywhere > 0 else np.nan
            numbers = (mattering, everywhere, ratio, float(top.mean()), rho, int((top >= 3).sum()), len(both))
            rows.append((name, data, query, region, *numbers))
    return rows


def role_swap_table(folders: list[Path]) -> pd.DataFrame:
    """The table of these runs. Raises ValueError unless they have different names, and ask different questions of the
    same pictures as far as their manifests tell."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"expected runs in folders of different names, got {', '.join(names)}")
    rows: list[tuple[object, ...]] = []
    asked, drawn, counts = [], [], []
    for name, folder in zip(names, folders, strict=True):
        record, scorecard, lifts = read_run(folder)
        data = part_of(folder / "manifest.json", record, "data")
        asked.append(str(data.get("preset", data.get("folder", ""))))
        drawn.append("preset" in data)
        counts.append(pictures_done(folder / "manifest.json", record))
        rows += swap_rows(name, asked[-1], scorecard, lifts)
    told = ", ".join(asked)
    if len(set(asked)) < len(asked):
        raise ValueError(f"expected runs over different tasks (--data FOLDER, --data colorbar), got {told}")
    if all(drawn):  # no two presets draw the same pictures
        raise ValueError(f"expected runs over the same pictures, one of them by way of a folder (--data), got {told}")
    if len(set(counts)) > 1:
        told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        raise ValueError(f"expected runs over the same pictures, got {told}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write; results of an earlier make are told by their header."""
    names = ("role_swap.csv", *figure_files(["role_swap"], folder=""))
    return Outputs(folder, "analysis.role_swap", names, headers={names[0]: COLUMNS})


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.role_swap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN_FOLDER", help="finished runs of analysis.compare")
    parser.add_argument("--output-dir", default="results/role-swap")
    options = parser.parse_args(argv)
    try:
        folder = require_folder_name(options.output_dir)
        outputs = outputs_of(folder)
        require_own(outputs, options.runs)
        table = role_swap_table(options.runs)
        figure = role_swap_dots(table)
        runs = [run.resolve().name for run in options.runs]
        record = {"runs": runs, "versions": versions(), "git": git_state()}
        with held(outputs):
            start_writing(outputs)
            write_table(table, folder / "role_swap.csv")
            save_figure(figure, folder / "role_swap")
            finish_writing(outputs, record)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 2):
        print(table[table["query"] == "cls"].to_string(index=False))
    print(f"All of it: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
