"""Which kind of interval covers best at which number of pictures? Trials on the stored effects of finished runs.

    python -m analysis.interval_coverage results/estimate results/published --output-dir results/estimate

Takes run folders with a full sweep (``scores/ablation_zero.safetensors``); writes ``interval_coverage.csv``, without a
model: estimator x population x number of pictures x kind of interval (:mod:`analysis.interval_trials`).
:func:`best_kinds` reads off it which kind covers best; :func:`analysis.intervals.kind_for` is held to that by a test.
Knows no other truth than the stored mean of the effects: what covers for other numbers is not tried here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.interval_trials import KINDS, Population, Trial, trial, with_tails
from analysis.intervals import kind_for
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, by_header, finish_writing, require_own, start_writing
from analysis.score_files import read_scores
from analysis.tables import write_table

SIZES = (16, 64, 128, 512)
LEAST_PICTURES = 20
EVERY = {"mean": 1, "trimmed": 6}  # which heads are tried: all, or every sixth where a set takes seconds
NAME, MANIFEST = "interval_coverage.csv", "interval_coverage.json"
LEAST = {"sets": 2, "trimmed_sets": 2, "bootstrap_replicates": 10, "trimmed_replicates": 10, "seed": 0}  # of options
# Kinds whose mean gaps differ by less than this are level: 200 sets and 12 heads cannot tell them apart.
LEVEL_WITHIN = 0.005


def read_effects(run: Path, truth: str = "zero") -> NDArray[np.float64]:
    """Effects of a run in % of the label variance, `[image head]`. ValueError or OSError with one line where none."""
    path = run / "scores" / f"ablation_{truth}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a run with a full sweep")
    found = read_scores(path)[0].get("delta_loss")
    if found is None or found.ndim != 3 or not np.isfinite(found).all() or len(found) < LEAST_PICTURES:
        shape = "none" if found is None else f"{list(found.shape)}"
        raise ValueError(
            f"{path}: expected finite delta_loss [image layer head] of at least {LEAST_PICTURES} images, got {shape}"
        )
    return 100 * found.astype(np.float64).reshape(len(found), -1)


def coverage_rows(
    run: str,
    effects: NDArray[np.float64],
    *,
    sets: dict[str, int],
    replicates: dict[str, int],
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> pd.DataFrame:
    """The trials of one run: one row an estimator, tail, number of pictures and kind of interval; quantiles over heads.

    `coverage_...`: share of the sets whose 95 % interval held the population's mean; `gap_mean`: distance of that share
    from 0.95, mean over heads; `below_share`: of the intervals that missed, how many lie below the mean; `width_ratio`:
    mean width against Student's t, median over heads.
    """
    rows = []
    for estimator, kinds in KINDS.items():
        tried = effects[:, :: EVERY[estimator]]
        for tails, population in (("stored", Population(tried)), ("fitted", with_tails(tried))):
            for size in sizes:
                found = trial(
                    population,
                    size,
                    estimator=estimator,
                    sets=sets[estimator],
                    replicates=replicates[estimator],
                    seed=seed,
                )
                for kind in kinds:
                    key = {"estimator": estimator, "run": run, "tails": tails, "num_pictures": size}
                    key |= {"interval": kind, "in_use": kind == kind_for(size, estimator)}
                    numbers = _numbers(found[kind], found["student_t"])
                    rows.append(key | numbers | {"sets": sets[estimator], "heads": tried.shape[1]})
    return pd.DataFrame(rows)


def _numbers(found: Trial, student: Trial) -> dict[str, float]:
    missed = 1 - found.holds
    return {
        "coverage_min": float(found.holds.min()),
        "coverage_q10": float(np.quantile(found.holds, 0.1)),
        "coverage_median": float(np.median(found.holds)),
        "gap_mean": float(np.abs(found.holds - 0.95).mean()),
        "below_share": float(found.below.sum() / missed.sum()) if missed.sum() else np.nan,
        "width_ratio": float(np.median(found.width / student.width)),
    }


def best_kinds(table: pd.DataFrame, run: str) -> pd.Series:
    """(estimator, num_pictures) -> the kind with the smallest `gap_mean` on a run's effects, mean of both tails; of
    those level with it Student's t, which needs no resamples."""
    rows = table[table["run"] == run]
    gaps = rows.pivot_table(index=["estimator", "num_pictures"], columns="interval", values="gap_mean", aggfunc="mean")
    level = gaps["student_t"] <= gaps.min(axis=1) + LEVEL_WITHIN
    return gaps.idxmin(axis=1).where(~level, "student_t")


def outputs_of(output: Path) -> Outputs:
    """What the command writes; its manifest has a name of its own, so that it can stand beside another's."""
    earlier = ("estimator", "run", "tails", "num_pictures", "interval")
    return Outputs(
        output, "analysis.interval_coverage", (NAME,), MANIFEST, lambda: by_header(output, NAME, earlier, MANIFEST)
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.interval_coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, with scores/")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=1000, help="sets of pictures drawn for each row")
    parser.add_argument("--trimmed-sets", type=int, default=200, help="the same for the trimmed mean, which is slower")
    parser.add_argument("--bootstrap-replicates", type=int, default=1000)
    parser.add_argument("--trimmed-replicates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        for name, least in LEAST.items():
            if getattr(options, name) < least:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")
        names = [run.resolve().name for run in options.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"runs: expected folders of different names, got {', '.join(names)}")
        outputs = outputs_of(options.output_dir)
        require_own(outputs)
        effects = {name: read_effects(run) for name, run in zip(names, options.runs, strict=True)}
        table = pd.concat(
            [
                coverage_rows(
                    name,
                    found,
                    sets={"mean": options.sets, "trimmed": options.trimmed_sets},
                    replicates={"mean": options.bootstrap_replicates, "trimmed": options.trimmed_replicates},
                    seed=options.seed,
                )
                for name, found in effects.items()
            ],
            ignore_index=True,
        )
        start_writing(outputs)
        write_table(table, options.output_dir / NAME)
        record = {name: getattr(options, name) for name in LEAST}
        finish_writing(outputs, {"runs": names, "settings": record, "versions": versions(), "git": git_state()})
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 400):
        print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
