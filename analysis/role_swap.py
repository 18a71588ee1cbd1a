"""A control of everything said of heads: ask the same pictures something else, and what matters must move.

examples:
  python -m data_synth --preset colorbar --split test --count 128 --out chirps-with-bars
  python -m analysis.compare --data chirps-with-bars --num-pictures 128 --output-dir results/reads-chirp
  python -m analysis.compare --model attribution/models/colorbar --data colorbar --num-pictures 128 \\
      --output-dir results/reads-colorbar
  python -m analysis.role_swap results/reads-chirp results/reads-colorbar

Takes two finished runs of python -m analysis.compare, one of a model that reads the chirp, one of a model that reads
the colour bar's maximum off the same pictures. Writes role_swap.csv and role_swap.png: where the heads that matter
look, in each. Loads no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.artists import save_figure
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, by_header, figure_files, finish_writing, require_own, start_writing
from analysis.role_plots import role_swap_dots
from analysis.tables import write_table
from attribution.own_folder import require_folder_name

EFFECT = "ablation_zero_var_pct"
REGIONS = ("chirp", "colorbar", "colorbar_ticks", "text", "frame")
TOP = 10
COLUMNS = (
    *("run", "data", "query", "region", "lift_of_what_matters", "lift_of_all", "ratio", "lift_of_top_10"),
    *("spearman_effect_lift", "num_top_10_above_3", "heads"),
)


def read_run(folder: Path) -> tuple[dict[str, object], pd.DataFrame, pd.DataFrame]:
    """Manifest, scorecard and lifts of a finished run. ValueError or OSError with one line for what is missing."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    record = json.loads(manifest.read_text(encoding="utf-8"))
    tables = []
    for name, columns in (
        ("head_scorecard", ("layer", "head", EFFECT)),
        ("localization", ("layer", "head", "query", "region", "metric", "value")),
    ):
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; the run needs pictures with masks")
        table = pd.read_csv(path)
        missing = [column for column in columns if column not in table]
        if missing:
            raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
        tables.append(table)
    scorecard, localization = tables
    return record, scorecard, localization[localization["metric"] == "lift"]


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
    """The table of these runs. Raises ValueError unless they ask different questions."""
    rows: list[tuple[object, ...]] = []
    asked = []
    for folder in folders:
        record, scorecard, lifts = read_run(folder)
        data = record.get("data", {})
        asked.append(str(data.get("preset", data.get("folder", ""))) if isinstance(data, dict) else "")
        rows += swap_rows(folder.resolve().name, asked[-1], scorecard, lifts)
    if len(set(asked)) < len(asked):
        raise ValueError(
            f"expected runs over different tasks (--data default, --data colorbar), got {', '.join(asked)}"
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write; results of an earlier make are told by their header."""
    names = ("role_swap.csv", *figure_files(["role_swap"], folder=""))
    return Outputs(folder, "analysis.role_swap", names, earlier=lambda: by_header(folder, names[0], COLUMNS))


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
        start_writing(outputs)
        write_table(table, folder / "role_swap.csv")
        save_figure(role_swap_dots(table), folder / "role_swap")
        runs = [run.resolve().name for run in options.runs]
        finish_writing(outputs, {"runs": runs, "versions": versions(), "git": git_state()})
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 2):
        print(table[table["query"] == "cls"].to_string(index=False))
    print(f"All of it: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
