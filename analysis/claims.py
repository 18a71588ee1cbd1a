"""Verdicts on the claims of the published study (arXiv 2503.18762), over several finished runs.

examples:
  python -m analysis.claims results/reference results/seed-1 results/seed-2
  python -m analysis.claims results/reference results/published --audit results/published-audit

Takes folders that python -m analysis.compare --checks claims has written, one for each model and preset of pictures,
and that of python -m analysis.published, whose numbers stand beside the measured ones as what the released procedure
gives. Writes claims.csv (one row a run and measured quantity), verdicts.csv (one row a claim and preset: the word that
all models have, or that they differ), verdicts.md (the same to be read), a figure a claim, and manifest.json. Every
word is made anew from the measured values and the thresholds of analysis/configs/plan.yaml, never taken from the runs;
runs measured for another plan are refused. Loads no model.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.artists import save_figure
from analysis.audit import AS_RELEASED_NAME, order_name
from analysis.claim_checks import require_different_models, require_own_tables, require_values
from analysis.claim_plots import claim_figure
from analysis.claim_tables import STUDY, ClaimRun, Released, claims_table, markdown, verdicts_table
from analysis.manifest import git_state, part_of, pictures_done, read_manifest, versions
from analysis.own_files import Outputs, by_command, figure_files, finish_writing, held, require_own, start_writing
from analysis.plan import CLAIMS, VERSION, plan_sha256
from analysis.report import write_atomically
from analysis.tables import read_table, require_numbers, write_table
from analysis.verdict_rules import MEASURED, judge, problem
from attribution.own_folder import require_folder_name

COMMAND, AUDIT_COMMAND = "analysis.claims", "analysis.published"
TEXTS = ("claim", "quantity", "unit", "left_out", "changing", "note")


def read_run(folder: Path) -> ClaimRun:
    """A finished run, judged from its measured values. ValueError or OSError with one line for one without them, of
    another plan, or whose table does not hold what the plan asks."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    record = read_manifest(path)
    if not (folder / "claims.csv").is_file():
        raise FileNotFoundError(f"{folder / 'claims.csv'}: not there; the run needs --checks claims")
    _check_plan(path, record)
    stored = read_table(folder / "claims.csv")
    rows = measured_rows(stored, folder / "claims.csv")
    judged = judge(rows)
    scorecard = read_table(folder / "head_scorecard.csv")
    try:
        data, config = record["data"], record["model"]["config"]
        preset = str(data.get("preset", data.get("folder")))
        heads = f"{scorecard['layer'].nunique()} x {scorecard['head'].nunique()} heads"
        backbone = "DINOv2-small" if config["backbone"] == "packaged" else str(config["backbone"])
        trained = config["synthesizer"].get("preset", config["synthesizer"].get("name", "unknown"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected the manifest of a run beside its head_scorecard.csv ({error!r})") from error
    require_own_tables(folder, record, rows, scorecard)
    differs = f"{backbone} of {heads}, fine-tuned on {trained} pictures, explained on {preset} ones; the study: {STUDY}"
    return ClaimRun(folder.resolve().name, preset, judged, differs, not_believed(stored, judged))


def _check_plan(path: Path, record: Mapping[str, Any]) -> None:
    told = record.get("plan_sha256")
    if told == plan_sha256():
        return
    by = "version 1 of the plan" if told == plan_sha256(1) else "another plan than analysis/configs/plan.yaml"
    command = record.get("command")
    again = shlex.join(map(str, command)) if isinstance(command, list) else "python -m analysis.compare --checks claims"
    raise ValueError(
        f"{path}: judged by {by}, expected version {VERSION}; make it anew (stored scores are reused): {again}"
    )


def measured_rows(stored: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The measured columns of a run's claims.csv. ValueError with one line where they are not what the plan asks."""
    missing = [name for name in MEASURED if name not in stored]
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
    rows = stored[list(MEASURED)].copy()
    for name in MEASURED:
        if name in TEXTS:
            rows[name] = [cell if isinstance(cell, str) else "" for cell in rows[name]]
            continue
        numbers = pd.to_numeric(rows[name], errors="coerce")
        wrong = np.flatnonzero((numbers.isna() & rows[name].notna()) | np.isinf(numbers))
        if len(wrong):
            raise ValueError(
                f"{path}: row {wrong[0] + 2}: {name}: expected a number, got {rows[name].iloc[wrong[0]]!r}"
            )
        rows[name] = numbers
    unknown = sorted(set(rows["claim"]) - set(CLAIMS))
    if unknown:
        raise ValueError(f"{path}: expected the claims {', '.join(CLAIMS)}, got {', '.join(unknown)}")
    rows["left_out"] = rows["left_out"].where(rows["left_out"] != "", np.nan)
    try:
        wrong_rows = problem(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if wrong_rows:
        raise ValueError(f"{path}: {wrong_rows}")
    require_values(rows, path)
    return rows


def not_believed(stored: pd.DataFrame, judged: pd.DataFrame) -> tuple[str, ...]:
    """Claims whose stored verdicts are not those of the measured values."""
    if "verdict" not in stored:
        return ()
    found = judged.groupby("claim")["verdict"].first()
    told = {claim: set(cells.astype(str)) for claim, cells in stored.groupby("claim")["verdict"]}
    return tuple(str(claim) for claim in found.index if told[claim] != {found[claim]})


def released_values(audit: Path) -> Released:
    """What the released procedure gives, by a finished audit. ValueError or OSError with one line where the folder is
    none."""
    if not (audit / "manifest.json").is_file():
        raise FileNotFoundError(f"{audit}: expected a finished audit (manifest.json) of python -m analysis.published")
    trend = read_table(audit / "trend.csv")
    needed = ("configuration", "order", "early_var_pct", "early_pct", "sixth_over_early", "late_over_early")
    absent = [name for name in needed if name not in trend]
    if absent:
        raise ValueError(f"{audit / 'trend.csv'}: missing column(s) {', '.join(absent)}")
    rows = trend[(trend["configuration"] == AS_RELEASED_NAME) & (trend["order"] == order_name(0))]
    if len(rows) != 1:
        raise ValueError(
            f"{audit / 'trend.csv'}: expected one row of {AS_RELEASED_NAME}, {order_name(0)}, got {len(rows)}"
        )
    require_numbers(rows, audit / "trend.csv", needed[2:])
    row = rows.iloc[0]
    found = {
        "mean effect of layers 1-3": (row["early_var_pct"], row["early_pct"]),
        "effect of layer 6 over that of layers 1-3": (row["sixth_over_early"], np.nan),
        "effect of layers 6-12 over that of layers 1-3": (row["late_over_early"], np.nan),
    }
    values = {name: (float(value), float(percent)) for name, (value, percent) in found.items()}
    path = audit / "manifest.json"
    record = read_manifest(path)
    if not by_command(audit, AUDIT_COMMAND):
        told = str(record.get("command", "none"))
        raise ValueError(
            f"{path}: expected model, preset and pictures of an audit of python -m {AUDIT_COMMAND}, got the command "
            f"{told:.80}"
        )
    data = part_of(path, record, "data")
    name = str(part_of(path, record, "model").get("name"))
    of = (name, str(data.get("preset", data.get("folder"))), pictures_done(path, record))
    return Released(*of, values)


def outputs_of(output: Path) -> Outputs:
    """Every file that the command may write."""
    names = ("claims.csv", "verdicts.csv", "verdicts.md", *figure_files(claim.lower() for claim in CLAIMS))
    return Outputs(output, COMMAND, names, earlier=lambda: by_command(output, COMMAND))


def write_claims(runs: Sequence[ClaimRun], audit: Path | None, output: Path) -> pd.DataFrame:
    """Write tables, figures and manifest; gives the verdicts."""
    released = None if audit is None else released_values(audit)
    table = claims_table(runs, released)
    verdicts = verdicts_table(table)
    told = markdown(verdicts)
    figures = {claim: claim_figure(table, verdicts, claim) for claim in CLAIMS}
    outputs = outputs_of(output)
    record: dict[str, Any] = {
        "command": ["python", "-m", COMMAND, *sys.argv[1:]],
        "runs": [run.name for run in runs],
        "audit": None if audit is None else audit.resolve().name,
        "plan_sha256": plan_sha256(),
        "versions": versions(),
        "git": git_state(),
    }
    with held(outputs):
        start_writing(outputs)
        (output / "figures").mkdir(exist_ok=True)
        write_table(table, output / "claims.csv")
        write_table(verdicts, output / "verdicts.csv")
        write_atomically(output / "verdicts.md", told.encode())
        for claim, figure in figures.items():
            save_figure(figure, output / "figures" / claim.lower())
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
    parser.add_argument("--output-dir", default="results/claims")
    options = parser.parse_args(argv)
    try:
        output = require_folder_name(options.output_dir)
        require_own(outputs_of(output), [*options.runs, *([options.audit] if options.audit else [])])
        names = [folder.resolve().name for folder in options.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"expected runs in folders of different names, got {', '.join(names)}")
        runs = [read_run(folder) for folder in options.runs]
        require_different_models(options.runs)
        verdicts = write_claims(runs, options.audit, output)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for run in runs:
        if run.not_believed:
            claims = ", ".join(run.not_believed)
            print(
                f"note: {run.name}: its verdicts on {claims} are not those of its measured values, which count",
                file=sys.stderr,
            )
    for _, row in verdicts.iterrows():
        print(f"{row['claim']} ({row['preset']}, {row['models']} model(s)): {row['verdict']}. {row['measured']}")
    print(f"All of it: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
