"""Do roles hold? The roles of two or more finished runs side by side: other pictures, or another fine-tuning.

examples:
  python -m analysis.role_changes results/reference results/other-pictures
  python -m analysis.role_changes results/reference results/seed-1 results/seed-2 --output-dir results/role-changes

Takes folders that python -m analysis.compare --checks roles has written. Writes role_changes.csv (one row a pair of
runs, model, query and threshold: how many confident roles of either are others in the other) and roles_by_run.csv (one
row a head). A role is confident where twins have decided it: detector or position prior. Runs must be over as many
pictures of the same make, and not be copies of one another. Loads no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from analysis.manifest import git_state, pictures_done, read_manifest, versions, weights_and_data
from analysis.own_files import Outputs, finish_writing, held, require_own, start_writing
from analysis.role_rules import COLUMNS as ROLE_COLUMNS
from analysis.role_rules import VERDICTS
from analysis.tables import read_table, require_numbers, write_table
from attribution.own_folder import require_folder_name

KEYS = ["model", "query", "tau"]
HEAD = ["layer", "head"]
TEXTS = ("model", "query", "semanticity", "concepts", "verdict", "role")
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
    roles = read_table(path, texts=TEXTS)
    missing = [name for name in ROLE_COLUMNS if name not in roles]
    if missing:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}")
    if roles.empty:
        raise ValueError(f"{path}: expected a row for each head, got none")
    require_numbers(roles, path, HEAD, whole=True)
    require_numbers(roles, path, ("tau",))
    unknown = ~roles["verdict"].isin(["", *VERDICTS])  # empty: nothing for twins to judge
    if unknown.any():
        place = int(unknown.to_numpy().argmax())
        expected = ", ".join(VERDICTS)
        raise ValueError(
            f"{path}: row {place + 2}: verdict: expected {expected} or nothing, got {roles['verdict'].iloc[place]!r}"
        )
    if roles.duplicated([*KEYS, *HEAD]).any():
        raise ValueError(f"{path}: more than one row for a head, model, query and tau")
    return roles


def role_changes(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a pair of runs, model, query and tau that both have.

    ``confident``: heads whose role in either run is a detector or a position prior; ``changed``, those of them whose
    role is not the same in both, ``changed_concept``, those that are about another concept. ``kappa``: Cohen's, of all
    roles, ``kappa_concept`` of their concepts; 1 where both runs give every head the same. Raises ValueError where runs
    differ in their heads, or have no model, query and tau in common.
    """
    rows = []
    for (name_a, a), (name_b, b) in combinations(runs.items(), 2):
        groups_b = dict(list(b.groupby(KEYS)))
        if not {key for key, _ in a.groupby(KEYS)} & set(groups_b):
            raise ValueError(f"{name_a} and {name_b}: roles.csv: no model, query and tau in common")
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
    _require_comparable(dict(zip(names, folders, strict=True)))
    return roles


def _require_comparable(folders: dict[str, Path]) -> None:
    """ValueError where pictures are not as many or not of the same make (seed and model may differ), or where two runs
    are the same model over the same pictures: whose roles never change."""
    made: dict[str, tuple[dict[str, str], tuple[str, dict[str, Any]]]] = {}
    for name, folder in folders.items():
        path = folder / "manifest.json"
        record = read_manifest(path)
        weights, data = weights_and_data(path, record)
        make = str(data.get("preset", data.get("folder")))
        made[name] = {"data": make, "num_pictures": str(pictures_done(path, record))}, (weights, data)
    for what in ("data", "num_pictures"):
        found = {name: kind[what] for name, (kind, _) in made.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"expected runs of the same {what}, got {told}")
    for (a, (_, one)), (b, (_, other)) in combinations(made.items(), 2):
        if one == other:
            raise ValueError(f"{a} and {b}: the same weights over the same pictures, expected another run")


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write; results of an earlier make, without a manifest, are told by a header."""
    headers = {"role_changes.csv": ("run_a", "run_b", *KEYS, "heads"), "roles_by_run.csv": (*KEYS, *HEAD)}
    return Outputs(folder, "analysis.role_changes", tuple(headers), headers=headers)


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
        record = {"runs": list(runs), "versions": versions(), "git": git_state()}
        with held(outputs):
            start_writing(outputs)
            for name, table in tables.items():
                write_table(table, folder / f"{name}.csv")
            finish_writing(outputs, record)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 3):
        print(tables["role_changes"].to_string(index=False))
    print(f"All of it: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
