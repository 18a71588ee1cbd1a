"""Runs of made-up models, written by hand as analysis.compare would write them."""

import json

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, trim_mean

from analysis.agreement import agreement_table
from analysis.intervals import bootstrap_indices
from analysis.score_files import Piece, join_pieces, score_file, store_piece

N, LAYERS, HEADS, FIRST = 24, 8, 3, 16
REPLICATES = 41
INDICES = bootstrap_indices(N, REPLICATES, seed=0)
MEAN = {"mean": np.mean, "trimmed": lambda values: trim_mean(values, 0.1)}
METHOD_NAMES = ("gate_ixg", "gate_ig", "cls_entropy", "chefer", "random")


def write_scores(folder, name, arrays):
    file = score_file(folder, name, {})
    count = len(next(iter(arrays.values())))
    pieces = [Piece(tuple(range(start, min(start + 10, count))), f"{name}{start}") for start in range(0, count, 10)]
    for piece in pieces:
        store_piece(file, piece, {key: values[list(piece.rows)] for key, values in arrays.items()}, {})
    join_pieces(file, pieces)


def write_run(folder, seed, *, name="model", kinds=("zero", "mean"), heads=HEADS, falls=False):
    """A run of a made-up model whose later layers matter more; what its tables hold follows from its scores."""
    rng = np.random.default_rng(seed)
    size = (np.arange(LAYERS)[:, None] ** 2 + 8) / 1000 * rng.uniform(0.1, 1.8, (LAYERS, heads))
    size = size[::-1] if falls else size
    effects = {
        f"ablation_{kind}": size * rng.exponential(1.0, (N, LAYERS, heads)) - 0.003 + 0.001 * place
        for place, kind in enumerate(kinds)
    }
    layer, head = (part.ravel() for part in np.indices((LAYERS, heads)))
    scorecard = {"layer": layer, "head": head}
    (folder / "scores").mkdir(parents=True)
    for truth, found in effects.items():
        write_scores(folder / "scores", truth, {"delta_loss": found})
        scorecard[f"{truth}_var_pct"] = 100 * found.mean(axis=0).ravel()
    pd.DataFrame(scorecard).to_csv(folder / "head_scorecard.csv", index=False)
    tables = []
    for place, method in enumerate(METHOD_NAMES):
        count = FIRST if method == "chefer" else N
        scores = effects["ablation_zero"][:count] + 0.02 * (place + 1) * rng.normal(size=(count, LAYERS, heads))
        turned = -scores if method == "cls_entropy" else scores
        write_scores(folder / "scores", method, {"scores": turned})
        truths = {truth: found[:count] for truth, found in effects.items()}
        signed = {method: method.startswith("gate")}
        indices = bootstrap_indices(count, 20, seed=0)
        tables.append(agreement_table({method: scores}, truths, signed, indices, 0))
    pd.concat(tables).to_csv(folder / "agreement.csv", index=False)
    record = {
        "model": {"name": name, "weights_sha256": f"weights {seed}", "config": {"target_names": ["start"]}},
        "data": {"preset": "default", "sha256": "pictures"},
        "pictures": {"done": N, "total": N},
    }
    (folder / "manifest.json").write_text(json.dumps(record))
    return effects


def write_three(folder):
    """Three runs, of which only the second has counterfactual ablation; their effects by model and truth."""
    kinds = {"one": ("zero", "mean"), "two": ("zero", "mean", "counterfactual"), "three": ("zero", "mean")}
    return {
        name: write_run(folder / name, seed, name=f"models/{name}", kinds=kinds[name])
        for seed, name in enumerate(kinds)
    }


def by_scipy(statistic):
    """Value and BCa limits of a statistic of the numbers of pictures, by scipy.stats.bootstrap."""
    found = bootstrap(
        (np.arange(N),), statistic, n_resamples=REPLICATES, vectorized=False, rng=np.random.default_rng(0)
    )
    return [statistic(np.arange(N)), *found.confidence_interval]


def centred(value, replicates):
    low, high = np.quantile(replicates, [0.025, 0.975]) + value - np.mean(replicates)
    return [value, max(-1, min(low, value)), min(1, max(high, value))]


def profile(effects, drawn, estimator="mean"):
    """Effect of each layer in % on the pictures drawn."""
    return [MEAN[estimator]([100 * sum(effects[i, layer]) / HEADS for i in drawn]) for layer in range(effects.shape[1])]


def numbers(row):
    return [row["value"], row["ci_low"], row["ci_high"]]
