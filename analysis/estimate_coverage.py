"""How good is the estimate of head effects? Trials on the stored effects of a finished run.

    python -m analysis.estimate_coverage results/reference
    python -m analysis.estimate_coverage results/reference --populations 1000 --draws 5000

Takes a run folder whose pictures were all swept (``scores/ablation_zero.safetensors``) and in which the predictor ran
(``scores/gate_ixg_out.safetensors``); writes three tables into it, without a model:

- ``estimate_coverage.csv``: intervals of 95 %, estimator x interval x number of pictures x number swept;
- ``estimate_precision.csv``: bias and explained variance, estimator x number swept;
- ``estimate_cost.csv``: cost against the exact sweep at equal intervals.

The estimator ``scores`` regresses effects on the predicted effects; ``outputs`` corrects the predicted changes of the
outputs and needs the arrays ``output_changes`` and ``residuals`` (ablation file), and ``contributions`` (predictor
file). ``estimate.json`` says with which settings, and names the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.estimate import LEAST_R2
from analysis.estimate_cost import compare_costs, sweep_costs
from analysis.estimate_trials import Coverage, Redraws, StoredEffects, coverage, redraw
from analysis.manifest import git_state, versions
from analysis.own_files import Outputs, finish_writing, held, require_own, start_writing
from analysis.score_files import Arrays, read_scores
from analysis.tables import write_table
from attribution.own_folder import require_folder_name

DESIGNS = ((128, 16), (128, 32), (128, 48), (512, 32), (512, 64), (512, 128))
SWEPT_SHARES = (1 / 4, 1 / 6, 1 / 8, 1 / 10, 1 / 12, 1 / 16)
PREDICTOR_COSTS = (4.0, 3.0, 2.0, 1.5)
LEAST_PICTURES = 17
PREDICTORS = {
    "zero": "gate_ixg_out",
    "mean": "patch_mean_out",
    "resample": "patch_donors_out",
    "counterfactual": "patch_counterfactual_out",
}


def read_stored(run: Path, truth: str = "zero", predictor: str = "gate_ixg_out") -> StoredEffects:
    """Effects and predictions of a run, of the pictures that both have.

    ValueError or OSError with one line if there are none or they do not fit.
    """
    ablation_path, predictor_path = (
        run / "scores" / f"{name}.safetensors" for name in (f"ablation_{truth}", predictor)
    )
    for path in (ablation_path, predictor_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a run with a full sweep and {predictor}")
    ablation, found = read_scores(ablation_path)[0], read_scores(predictor_path)[0]
    effects = _array(ablation, "delta_loss", ablation_path, 3)
    predicted = _array(found, "scores", predictor_path, 3)[: len(effects)]
    if effects.shape != predicted.shape:
        raise ValueError(f"{predictor_path}: expected scores {list(effects.shape)}, got {list(predicted.shape)}")
    if not {"output_changes", "residuals"} <= set(ablation) or "contributions" not in found:
        return StoredEffects(effects, predicted)
    axes = ablation["output_changes"].ndim  # of resample ablation one more, the donor
    changes = _array(ablation, "output_changes", ablation_path, 5 if axes == 5 else 4)
    contributions = _array(found, "contributions", predictor_path, 5 if axes == 5 else 4)[: len(effects)]
    residuals = _array(ablation, "residuals", ablation_path, 2)
    expected = (*effects.shape, *changes.shape[3:-1], residuals.shape[1])
    if changes.shape != expected or contributions.shape != expected or len(residuals) != len(effects):
        raise ValueError(f"{predictor_path}: expected output_changes and contributions {list(expected)}")
    twice = 2 * residuals.reshape(len(residuals), *(1,) * (axes - 2), residuals.shape[1])
    squares = (changes * (changes + twice)).mean(axis=tuple(range(3, axes)))
    if not np.allclose(squares, effects, rtol=0, atol=1e-5 * np.abs(effects).max()):
        raise ValueError(f"{ablation_path}: expected delta_loss to be what output_changes do to the residuals")
    return StoredEffects(effects, predicted, changes, -contributions, residuals)


def coverage_table(stored: StoredEffects, *, populations: int, bootstrap_replicates: int, seed: int) -> pd.DataFrame:
    """One row an estimator, interval and design; quantiles over heads. See `results/README.md` for the columns."""

    def trial(estimator: str, num_pictures: int, num_swept: int) -> Coverage:
        return coverage(
            stored,
            estimator,
            num_pictures,
            num_swept,
            populations=populations,
            bootstrap_replicates=bootstrap_replicates,
            seed=seed,
        )

    exact = {number: trial("exact", number, number) for number in sorted({n for pair in DESIGNS for n in pair})}
    rows = []
    for number, found in exact.items():
        rows += [_coverage_row("exact", name, number, number, found, found) for name in found.holds]
    for estimator in stored.estimators:
        for num_pictures, num_swept in DESIGNS:
            found = trial(estimator, num_pictures, num_swept)
            for name in found.holds:
                row = _coverage_row(estimator, name, num_pictures, num_swept, found, exact[num_pictures])
                if name == "bca":
                    same = max(3, round(num_pictures / float(row["width_ratio"]) ** 2))  # type: ignore[arg-type]
                    held = trial("exact", same, same).holds["bca"].mean(axis=0)
                    row |= {"equal_width_pictures": same, "equal_width_coverage_median": np.median(held)}
                rows.append(row)
    return pd.DataFrame(rows)


def precision_tables(stored: StoredEffects, *, draws: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bias and explained variance, and cost at equal intervals: one row an estimator and number swept (and price)."""
    total, num_layers, num_heads = stored.effects.shape
    costs = sweep_costs(num_layers, num_heads)
    sizes = sorted({swept for _, swept in DESIGNS if 3 <= swept < total})
    precision, cost = [], []
    for estimator in stored.estimators:
        for num_swept in sizes:
            found = redraw(stored, estimator, num_swept, draws, seed)
            precision.append(
                {"estimator": estimator, "num_pictures": total, "num_swept": num_swept}
                | _precision_columns(found, num_swept / total)
                | {"draws": draws}
            )
            for share in SWEPT_SHARES:
                for price in PREDICTOR_COSTS:
                    for rule, is_exact in (
                        ("all_estimated", np.zeros((1, num_layers * num_heads), dtype=bool)),
                        ("poor_heads_swept", ~found.kept(LEAST_R2)),
                    ):
                        key = {
                            "estimator": estimator,
                            "rule": rule,
                            "num_swept": num_swept,
                            "predictor_forwards": price,
                        }
                        cost.append(key | _cost_columns(found.r2, is_exact, costs, num_swept, share, price))
    return pd.DataFrame(precision), pd.DataFrame(cost)


def _precision_columns(found: Redraws, share: float) -> dict[str, float]:
    reduction = 1 / (1 - found.r2 * (1 - share))
    columns = {"bias_z_rms": np.sqrt((found.bias_z**2).mean()), "bias_z_max": np.abs(found.bias_z).max()}
    for name, values in (("r2", found.r2), ("variance_reduction", reduction)):
        columns |= {f"{name}_{label}": value for label, value in _quantiles(values).items()}
    kept_bias = np.abs(found.kept_bias(LEAST_R2))
    return {name: float(value) for name, value in columns.items()} | {
        "reported_minus_true_r2_median": float(np.median(found.reported_r2.mean(axis=0) - found.r2)),
        "heads_swept_on_all": float((~found.kept(LEAST_R2)).sum(axis=1).mean()),
        "kept_bias_se_max": float(kept_bias[np.isfinite(kept_bias)].max(initial=0.0)),
    }


def _cost_columns(
    r2: NDArray[np.float64],
    is_exact: NDArray[np.bool_],
    costs: NDArray[np.float64],
    num_swept: int,
    share: float,
    predictor_cost: float,
) -> dict[str, float]:
    """Costs of a picture, averaged over draws that sweep different heads, `is_exact` [draw head], on all pictures."""
    num_pictures = round(num_swept / share)
    compared = [
        compare_costs(
            r2.reshape(costs.shape),
            num_pictures=num_pictures,
            num_swept=num_swept,
            head_costs=costs,
            predictor_cost=predictor_cost,
            is_exact=exact.reshape(costs.shape),
        )
        for exact in is_exact
    ]
    effective = np.mean([found.effective_pictures for found in compared], axis=0)
    estimate, exact_cost = (
        float(np.mean([getattr(found, name) for found in compared])) for name in ("estimate", "exact")
    )
    return {
        "num_pictures": num_pictures,
        "effective_pictures_median": float(np.median(effective)),
        "estimate_forwards": estimate / num_pictures,
        "exact_forwards": exact_cost / num_pictures,
        "times_cheaper": exact_cost / estimate,
    }


def _coverage_row(
    estimator: str, interval: str, num_pictures: int, num_swept: int, found: Coverage, exact: Coverage
) -> dict[str, object]:
    held = found.holds[interval].mean(axis=0)
    return {
        "estimator": estimator,
        "interval": interval,
        "num_pictures": num_pictures,
        "num_swept": num_swept,
        **{f"coverage_{label}": value for label, value in _quantiles(held).items() if label != "q90"},
        "width_ratio": np.median(found.widths[interval].mean(axis=0) / exact.widths["bca"].mean(axis=0)),
        "bias_z_rms": np.sqrt((found.bias_z**2).mean()),
        "bias_z_max": np.abs(found.bias_z).max(),
        "populations": len(found.errors),
    }


def _quantiles(values: NDArray[np.floating]) -> dict[str, float]:
    """Over heads."""
    return {
        "min": float(values.min()),
        "q10": float(np.quantile(values, 0.1)),
        "median": float(np.median(values)),
        "q90": float(np.quantile(values, 0.9)),
    }


def _array(arrays: Arrays, name: str, path: Path, axes: int) -> NDArray[np.float64]:
    found = arrays.get(name)
    if found is None or found.ndim != axes or not np.isfinite(found).all() or len(found) < LEAST_PICTURES:
        shape = "none" if found is None else f"{list(found.shape)}"
        raise ValueError(
            f"{path}: expected finite {name} with {axes} axes and at least {LEAST_PICTURES} images, got {shape}"
        )
    return found.astype(np.float64)


def outputs_of(folder: Path) -> Outputs:
    """Every file that the command may write, beside a run's own; earlier makes wrote no manifest."""
    headers = {
        "estimate_precision.csv": ("estimator", "num_pictures", "num_swept", "bias_z_rms"),
        "estimate_coverage.csv": ("estimator", "interval", "num_pictures", "num_swept", "coverage_min"),
        "estimate_cost.csv": ("estimator", "rule", "num_swept", "predictor_forwards"),
    }
    return Outputs(folder, "analysis.estimate_coverage", tuple(headers), "estimate.json", headers=headers)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.estimate_coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, with scores/")
    parser.add_argument("--output-dir", default=None, help="default: the run folder")
    parser.add_argument("--truth", default="zero", help="which ablation")
    parser.add_argument("--predictor", default=None, help="which method predicts (default: what expands the truth)")
    parser.add_argument("--populations", type=int, default=200, help="sets of pictures drawn for the coverage")
    parser.add_argument("--draws", type=int, default=1000, help="samples drawn for bias and precision")
    parser.add_argument("--bootstrap-replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        least = {"populations": 2, "draws": 2, "bootstrap_replicates": 10, "seed": 0}
        for name, smallest in least.items():
            if getattr(options, name) < smallest:
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected at least {smallest}, got {getattr(options, name)}"
                )
        output = options.run if options.output_dir is None else require_folder_name(options.output_dir)
        outputs = outputs_of(output)
        require_own(outputs)
        if options.truth not in PREDICTORS and options.predictor is None:
            raise ValueError(f"--truth: expected one of {', '.join(PREDICTORS)}, got {options.truth}")
        options.predictor = options.predictor or PREDICTORS[options.truth]
        stored = read_stored(options.run, options.truth, options.predictor)
        settings = {name: getattr(options, name) for name in ("truth", "predictor", *least)}
        record = {"run": options.run.resolve().name, "settings": settings, "versions": versions(), "git": git_state()}
        with held(outputs):
            precision, cost = precision_tables(stored, draws=options.draws, seed=options.seed)
            coverage = coverage_table(
                stored,
                populations=options.populations,
                bootstrap_replicates=options.bootstrap_replicates,
                seed=options.seed,
            )
            tables = {"precision": precision, "cost": cost, "coverage": coverage}
            start_writing(outputs)
            for name, table in tables.items():
                write_table(table, output / f"estimate_{name}.csv")
            finish_writing(outputs, record)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if "outputs" not in stored.estimators:
        print("The run stored no output changes and contributions: the estimator `outputs` is not tried.")
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 400):
        for name, table in tables.items():
            print(f"\n{name}\n{table.round(3).to_string(index=False)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
