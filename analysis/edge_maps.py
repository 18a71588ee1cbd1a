"""From which head to which, in several models side by side: the edges that carry most of what heads do by later heads.

examples:
  python -m analysis.edge_maps results/reads-chirp results/reads-colorbar results/published

Takes finished runs of python -m analysis.compare with --checks edges. Writes edge_maps.csv (the largest exact edges of
each run, until they carry four fifths of the sizes of all, at most 60), edge_totals.csv (one row a run: how many these
are, what goes by queries, keys and values, and how far the linear estimates agree with the exact edges) and
edge_maps.png. Loads no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from analysis.artists import save_figure
from analysis.checks.edges import COLUMNS as EDGE_COLUMNS
from analysis.edge_plots import CARRIED, edge_map, largest
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, figure_files, finish_writing, held, require_own, start_writing
from analysis.tables import read_table, require_numbers, write_table
from attribution.edges import INPUTS
from attribution.own_folder import require_folder_name

HEADS = ("sender_layer", "sender_head", "layer", "head")
TOTALS = (
    "run",
    "edges",
    "largest",
    "share_of_largest",
    *(f"share_{name}" for name in INPUTS),
    "spearman_estimate",
    "n",
)


def read_edges(folder: Path) -> pd.DataFrame:
    """The edges of a finished run. ValueError or OSError with one line for what is missing or makes no sense."""
    path = folder / "edges.csv"
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; the run needs --checks edges")
    edges = read_table(path, texts=("input",))
    missing = [name for name in EDGE_COLUMNS if name not in edges]
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
    require_numbers(edges, path, (*HEADS, "n"), whole=True)
    unknown = ~edges["input"].isin(INPUTS)
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise ValueError(
            f"{path}: row {row + 2}: input: expected {', '.join(INPUTS)}, got {edges['input'].iloc[row]!r}"
        )
    if edges.duplicated([*HEADS, "input"]).any():
        raise ValueError(f"{path}: more than one row for an edge")
    if not edges["effect_var_pct"].notna().any():
        raise ValueError(f"{path}: effect_var_pct: expected some exact edges, got none")
    return edges


def totals_table(edges: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a run: exact ``edges``; how many ``largest`` ones carry :data:`~analysis.edge_plots.CARRIED` of their
    sizes (at most 60) and what share they carry; the share of all sizes that goes by each input; Spearman's rho of the
    linear estimate with the exact effect over edges; ``n`` pictures."""
    rows = []
    for name, table in edges.items():
        exact = table[table["effect_var_pct"].notna()]
        found, size = largest(table), exact["effect_var_pct"].abs()
        row = {"run": name, "edges": len(exact), "largest": len(found), "n": int(exact["n"].iloc[0])}
        row["share_of_largest"] = float(found["share_of_exact"].iloc[-1])
        row |= {f"share_{one}": float(size[exact["input"] == one].sum() / size.sum()) for one in INPUTS}
        row["spearman_estimate"] = float(spearmanr(exact["estimate_var_pct"], exact["effect_var_pct"]).statistic)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TOTALS))


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write."""
    names = ("edge_maps.csv", "edge_totals.csv", *figure_files(["edge_maps"], folder=""))
    return Outputs(folder, "analysis.edge_maps", names)


def _named(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"expected runs in folders of different names, got {', '.join(names)}")
    return {name: read_edges(folder) for name, folder in zip(names, folders, strict=True)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.edge_maps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="finished runs of analysis.compare")
    parser.add_argument("--output-dir", default="results/edge-maps")
    options = parser.parse_args(argv)
    try:
        folder = require_folder_name(options.output_dir)
        outputs = outputs_of(folder)
        require_own(outputs, options.runs)
        runs = _named(options.runs)
        shown = [largest(table).assign(run=name) for name, table in runs.items()]
        maps = pd.concat(shown, ignore_index=True)[["run", *EDGE_COLUMNS]]
        totals, figure = totals_table(runs), edge_map(runs)
        with held(outputs):
            start_writing(outputs)
            write_table(maps, folder / "edge_maps.csv")
            write_table(totals, folder / "edge_totals.csv")
            save_figure(figure, folder / "edge_maps")
            record = {"runs": list(runs), "carried": CARRIED, "versions": versions(), "git": git_state()}
            finish_writing(outputs, record)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 2):
        print(totals.to_string(index=False))
    print(f"All of it: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
