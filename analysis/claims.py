"""Verdicts on the claims of the published study (arXiv 2503.18762), over several finished runs.

examples:
  python -m analysis.claims results/reference results/seed-1 results/seed-2
  python -m analysis.claims results/reference results/published --audit results/published-audit

Takes folders that python -m analysis.compare --checks claims has written, one for each model and preset of pictures,
and that of python -m analysis.published, whose numbers stand beside the measured ones as what the released procedure
gives. Writes claims.csv (one row a run and measured quantity), verdicts.csv (one row a claim and preset: supported only
where every model supports it), verdicts.md (the same to be read), a figure a claim, and manifest.json. Thresholds are
those of analysis/configs/plan.yaml; runs judged by another plan are refused. Loads no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.artists import save_figure
from analysis.audit import AS_RELEASED_NAME, order_name
from analysis.checks.claims import COLUMNS as RUN_COLUMNS
from analysis.checks.claims import NOT_SUPPORTED, SUPPORTED, UNTESTABLE
from analysis.claim_plots import claim_figure
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, by_command, figure_files, finish_writing, require_own, start_writing
from analysis.plan import CLAIMS, plan_sha256, read_plan
from analysis.report import write_atomically
from analysis.tables import read_table, write_table

COMMAND = "analysis.claims"
STUDY = "a supervised ViT-B/16 of 12 x 12 heads, fine-tuned on 100,000 published pictures"
COLUMNS = (
    *("claim", "quantity", "unit", "preset", "run", "value", "ci_low", "ci_high", "level", "value_pct_of_baseline"),
    *(
        "as_released",
        "as_released_pct_of_baseline",
        "n_pictures",
        "n_heads",
        "test",
        "met",
        "verdict",
        "why",
        "differs",
    ),
)
VERDICT_COLUMNS = (
    *("claim", "statement", "published", "as_released", "preset", "measured", "verdict", "models", "differs"),
)
MIXED = "not in every model"


@dataclass(frozen=True, eq=False)
class ClaimRun:
    """What a finished run says of the claims: its name, preset, rows, and what differs from the study's model."""

    name: str
    preset: str
    rows: pd.DataFrame
    differs: str


def read_run(folder: Path) -> ClaimRun:
    """A finished run. ValueError or OSError with one line for one without verdicts, or judged by another plan."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    record = json.loads(path.read_text(encoding="utf-8"))
    if not (folder / "claims.csv").is_file():
        raise FileNotFoundError(f"{folder / 'claims.csv'}: not there; the run needs --checks claims")
    if record.get("plan_sha256") != plan_sha256():
        raise ValueError(f"{path}: judged by another plan than analysis/configs/plan.yaml; run it again")
    rows = read_table(folder / "claims.csv")
    missing = [name for name in RUN_COLUMNS if name not in rows]
    if missing:
        raise ValueError(f"{folder / 'claims.csv'}: missing column(s) {', '.join(missing)}")
    scorecard = read_table(folder / "head_scorecard.csv")
    data, config = record["data"], record["model"]["config"]
    preset = str(data.get("preset", data.get("folder")))
    heads = f"{scorecard['layer'].nunique()} x {scorecard['head'].nunique()} heads"
    backbone = "DINOv2-small" if config["backbone"] == "packaged" else str(config["backbone"])
    trained = config["synthesizer"].get("preset", config["synthesizer"].get("name", "unknown"))
    differs = f"{backbone} of {heads}, fine-tuned on {trained} pictures, explained on {preset} ones; the study: {STUDY}"
    return ClaimRun(folder.resolve().name, preset, rows, differs)


def released_values(audit: Path) -> dict[str, tuple[float, float]]:
    """Quantity -> what the released procedure gives for it: in the unit of the quantity, and in % of its baseline (NaN
    where that is no unit of it). ValueError or OSError with one line where the folder is no finished audit."""
    if not (audit / "manifest.json").is_file():
        raise FileNotFoundError(f"{audit}: expected a finished audit (manifest.json) of python -m analysis.published")
    trend = read_table(audit / "trend.csv")
    row = trend[(trend["configuration"] == AS_RELEASED_NAME) & (trend["order"] == order_name(0))].iloc[0]
    found = {
        "mean effect of layers 1-3": (row["early_var_pct"], row["early_pct"]),
        "effect of layer 6 over that of layers 1-3": (row["sixth_over_early"], np.nan),
        "effect of layers 6-12 over that of layers 1-3": (row["late_over_early"], np.nan),
    }
    return {name: (float(value), float(percent)) for name, (value, percent) in found.items()}


def claims_table(runs: Sequence[ClaimRun], released: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """Rows of all runs (`COLUMNS`), claim by claim and quantity by quantity."""
    parts = []
    for run in runs:
        part = run.rows.assign(preset=run.preset, run=run.name, differs=run.differs)
        values = [released.get(str(name), (np.nan, np.nan)) for name in part["quantity"]]
        part["as_released"], part["as_released_pct_of_baseline"] = zip(*values, strict=True)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    quantities = list(dict.fromkeys(table["quantity"]))
    order = np.lexsort((table["quantity"].map(quantities.index), table["claim"]))
    return table.iloc[order].reset_index(drop=True)[list(COLUMNS)]


def verdicts_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a claim and preset (`VERDICT_COLUMNS`): a verdict needs every model."""
    rows = []
    for claim in CLAIMS:
        plan = read_plan()[claim]
        for preset, found in table[table["claim"] == claim].groupby("preset", sort=False):
            verdicts = found.groupby("run", sort=False)["verdict"].first()
            first = found[found["test"].fillna("") != ""]
            measured = "; ".join(
                _named(of.iloc[0]) + ", ".join(_told(row) for _, row in of.iterrows())
                for _, of in first.groupby("quantity", sort=False)
            )
            known = first.dropna(subset=["as_released"]).drop_duplicates("quantity")
            released = "; ".join(f"{_named(row)}{row['as_released']:.3g}" for _, row in known.iterrows())
            rows.append(
                (
                    *(claim, plan["claim"], plan["published"], released or "not measured by it", preset, measured),
                    *(over_models(verdicts), len(verdicts), found["differs"].iloc[0]),
                )
            )
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def over_models(verdicts: pd.Series) -> str:
    """The verdict over models: that of all, or that they differ."""
    if verdicts.nunique() == 1:
        return str(verdicts.iloc[0])
    if set(verdicts) <= {NOT_SUPPORTED, UNTESTABLE}:
        return NOT_SUPPORTED
    return f"{MIXED} ({int((verdicts == SUPPORTED).sum())} of {len(verdicts)})"


def _named(row: pd.Series) -> str:
    """The quantity, with its unit where that is more than its kind."""
    unit = str(row["unit"])
    return f"{row['quantity']} ({unit}): " if unit.startswith("%") else f"{row['quantity']}: "


def _told(row: pd.Series) -> str:
    if np.isnan(row["value"]):
        return "–"
    value = f"{row['value']:.3g}"
    return value if np.isnan(row["ci_low"]) else f"{value} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"


def markdown(verdicts: pd.DataFrame) -> str:
    """The verdicts as a Markdown table, with what differs from the study's model beside each."""
    head = (f"claim, and its published figure ({STUDY})", "released procedure", "in our models", "measured", "verdict")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for _, row in verdicts.iterrows():
        cells = (
            *(f"**{row['claim']}** {row['statement']}: {row['published']}", row["as_released"]),
            *(f"{row['models']} of {str(row['differs']).split('; the study')[0]}", row["measured"]),
            f"**{row['verdict']}**",
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def outputs_of(output: Path) -> Outputs:
    """Every file that the command may write."""
    names = ("claims.csv", "verdicts.csv", "verdicts.md", *figure_files(claim.lower() for claim in CLAIMS))
    return Outputs(output, COMMAND, names, earlier=lambda: by_command(output, COMMAND))


def write_claims(runs: Sequence[ClaimRun], audit: Path | None, output: Path) -> pd.DataFrame:
    """Write tables, figures and manifest; gives the verdicts."""
    released = {} if audit is None else released_values(audit)
    table = claims_table(runs, released)
    verdicts = verdicts_table(table)
    outputs = outputs_of(output)
    start_writing(outputs)
    (output / "figures").mkdir(exist_ok=True)
    write_table(table, output / "claims.csv")
    write_table(verdicts, output / "verdicts.csv")
    write_atomically(output / "verdicts.md", markdown(verdicts).encode())
    for claim in CLAIMS:
        save_figure(claim_figure(table, verdicts, claim), output / "figures" / claim.lower())
    record: dict[str, Any] = {
        "command": ["python", "-m", "analysis.claims", *sys.argv[1:]],
        "runs": [run.name for run in runs],
        "audit": None if audit is None else audit.resolve().name,
        "plan_sha256": plan_sha256(),
        "versions": versions(),
        "git": git_state(),
    }
    finish_writing(outputs, record)
    return verdicts


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="finished runs with claims.csv")
    parser.add_argument("--audit", type=Path, default=None, help="folder of python -m analysis.published")
    parser.add_argument("--output-dir", type=Path, default=Path("results/claims"))
    options = parser.parse_args(argv)
    try:
        require_own(outputs_of(options.output_dir), [*options.runs, *([options.audit] if options.audit else [])])
        names = [folder.resolve().name for folder in options.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"expected runs in folders of different names, got {', '.join(names)}")
        verdicts = write_claims([read_run(folder) for folder in options.runs], options.audit, options.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for _, row in verdicts.iterrows():
        print(f"{row['claim']} ({row['preset']}, {row['models']} model(s)): {row['verdict']}. {row['measured']}")
    print(f"All of it: {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
