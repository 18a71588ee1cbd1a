"""Do roles hold? The roles of two or more finished runs side by side: other pictures, or another fine-tuning.

examples:
  python -m analysis.role_changes results/reference results/other-pictures
  python -m analysis.role_changes results/reference results/seed-1 results/seed-2 --output-dir results/role-changes

Takes folders that python -m analysis.compare --checks roles has written. Writes role_changes.csv (one row a pair of
runs, model, query and threshold: how many confident roles of either are others in the other) and roles_by_run.csv (one
row a head). A role is confident where twins have decided it: detector or position prior. Runs must be over as many
pictures of the same make. Loads no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, by_header, finish_writing, require_own, start_writing
from analysis.role_rules import COLUMNS as ROLE_COLUMNS
from analysis.tables import write_table
from attribution.own_folder import require_folder_name

KEYS = ["model", "query", "tau"]
HEAD = ["layer", "head"]
CONFIDENT = ("detector", "position prior")
COLUMNS = (
    *("run_a", "run_b", *KEYS, "heads", "confident", "changed", "share_changed"),
    *("changed_concept", "share_changed_concept", "kappa", "kappa_concept"),
)


def read_roles(folder: Path) -> pd.DataFrame:
    """The roles of a finished run. Raises ValueError or OSError with one line for a folder that has none."""
    path = folder / "roles.csv"
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run (manifest.json)")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; the run needs --checks roles")
    roles = pd.read_csv(path, keep_default_na=False, dtype={"concepts": str, "verdict": str})
    missing = [name for name in ROLE_COLUMNS if name not in roles]
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
    if roles.duplicated([*KEYS, *HEAD]).any():
        raise ValueError(f"{path}: more than one row for a head, model, query and tau")
    return roles


def role_changes(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a pair of runs, model, query and tau that both have.

    ``confident``: heads whose role in either run is a detector or a position prior; ``changed``, those of them whose
    role is not the same in both, ``changed_concept``, those that are about another concept. ``kappa``: Cohen's, of all
    roles, ``kappa_concept`` of their concepts; 1 where both runs give every head the same. Raises ValueError where runs
    differ in their heads.
    """
    rows = []
    for (name_a, a), (name_b, b) in combinations(runs.items(), 2):
        groups_b = dict(list(b.groupby(KEYS)))
        for key, left in a.groupby(KEYS, sort=False):
            if key not in groups_b:
                continue
            both = left.merge(groups_b[key], on=HEAD, suffixes=("_a", "_b"), validate="one_to_one")
            if len(both) != len(left) or len(both) != len(groups_b[key]):
                raise ValueError(f"{name_a} and {name_b}: expected runs over the same heads")
            sure = both["verdict_a"].isin(CONFIDENT) | both["verdict_b"].isin(CONFIDENT)
            changed = sure & (both["role_a"] != both["role_b"])
            moved = sure & (both["concepts_a"] != both["concepts_b"])
            count = int(sure.sum())
            rows.append(
                (
                    *(name_a, name_b, *key, len(both), count, int(changed.sum()), _share(changed.sum(), count)),
                    *(int(moved.sum()), _share(moved.sum(), count)),
                    *(_kappa(both["role_a"], both["role_b"]), _kappa(both["concepts_a"], both["concepts_b"])),
                )
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def roles_by_run(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a model, query, tau and head; its role in each run, empty where a run does not have it."""
    parts = [
        roles.set_index([*KEYS, *HEAD])["role"].rename(f"role_{name}") for name, roles in runs.items()
    ]  # fmt: skip
    return pd.concat(parts, axis=1).reset_index()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _kappa(a: pd.Series, b: pd.Series) -> float:
    return 1.0 if (a == b).all() else float(cohen_kappa_score(a, b))


def _named(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise ValueError(f"expected two or more runs in folders of different names, got {', '.join(names) or 'none'}")
    roles = {name: read_roles(folder) for name, folder in zip(names, folders, strict=True)}
    made = {name: _made_of(folder) for name, folder in zip(names, folders, strict=True)}
    for what in next(iter(made.values())):
        found = {name: one[what] for name, one in made.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"expected runs of the same {what}, got {told}")
    return roles


def _made_of(folder: Path) -> dict[str, str]:
    """What must be the same in all runs: how many pictures, and of which make; seed and model may differ."""
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    settings, data = record.get("settings", {}), record.get("data", {})
    return {"data": str(data.get("preset", data.get("folder"))), "num_pictures": str(settings.get("num_pictures"))}


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write; results of an earlier make, without a manifest, are told by a header."""
    names = ("role_changes.csv", "roles_by_run.csv")
    return Outputs(
        folder, "analysis.role_changes", names, earlier=lambda: by_header(folder, names[0], ("run_a", "run_b", "model"))
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.role_changes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="finished runs with roles.csv")
    parser.add_argument("--output-dir", default="results/role-changes")
    options = parser.parse_args(argv)
    try:
        folder = require_folder_name(options.output_dir)
        outputs = outputs_of(folder)
        require_own(outputs, options.runs)
        runs = _named(options.runs)
        tables = {"role_changes": role_changes(runs), "roles_by_run": roles_by_run(runs)}
        start_writing(outputs)
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        finish_writing(outputs, {"runs": list(runs), "versions": versions(), "git": git_state()})
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 3):
        print(tables["role_changes"].to_string(index=False))
    print(f"All of it: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
