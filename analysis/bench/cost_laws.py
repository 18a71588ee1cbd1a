"""How time, memory and disk grow with pictures, heads, blocks and tokens: measured, put into laws, and projected.

Takes measured points; gives one table with rows of three kinds that are never mixed: ``measured`` (a point, beside what
the law says of it), ``law`` (coefficients and how well they fit) and ``projected`` (what the law says of a model nobody
ran here). Knows no trained model and no picture.

Time of a stage = constant + counted operations / rate + numbers moved x time each; memory = constant + weights + what
a pass holds + the pictures. Coefficients are not negative and minimise the squared relative error. Points named
``large`` are kept out of the first fit and tell how far the law reaches; the projection uses a second fit with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from analysis.bench.cost_points import MLP_RATIO, PATCH_SIZE, SETTINGS, STAGES, Measured, Point, measure_each
from analysis.bench.operations import Sizes, backward_macs, forward_macs, shared_sweep_macs
from attribution.batch import MethodSettings
from attribution.methods import METHODS, PIXEL_METHODS, cost

Floats = NDArray[np.float64]
VARIED: dict[str, tuple[int, ...]] = {
    "pictures": (16, 32), "blocks": (8, 12), "heads": (6, 12), "width": (96, 384), "image_size": (96, 224, 320),
}  # fmt: skip
LARGE = {"pictures": 4, "blocks": 2, "heads": 16, "width": 1024, "image_size": 224}
NUM_TARGETS, PROCESSES = 3, (1, 8, 64)
WITH_GRAPH = ("layer_pass", "full_run")  # stages that keep every block's activations for a backward pass
NOTE = "extrapolated; time and memory of each process, with the cores of this machine; pictures in pieces of 16"
COLUMNS = (
    *("kind", "stage", "varied", "model", "pictures", "blocks", "heads", "width", "tokens", "processes"),
    *("counted_gflop", "seconds", "seconds_by_law", "peak_mb", "peak_mb_by_law", "hours", "disk_gb", "note"),
)


@dataclass(frozen=True)
class Law:
    """Coefficients of one stage; errors are relative. ``held_out`` is of the points kept out of the fit."""

    coefficients: Floats
    median_error: float
    largest_error: float
    held_out_error: float


def points(quick: bool = False) -> list[Point]:
    """The usual point of every stage, one size varied at a time, and one large point."""
    usual = Point("sweep", pictures=2, blocks=2, heads=2, width=32, image_size=32) if quick else Point("sweep")
    changes: list[dict[str, Any]]
    if quick:
        changes = [{"varied": name, name: 4} for name in ("pictures", "blocks", "heads")]
        changes.append({"varied": "large", "width": 64})
    else:
        changes = [{"varied": name, name: size} for name, sizes in VARIED.items() for size in sizes]
        changes.append({"varied": "large", **LARGE})
    varied = [usual, *(replace(usual, **change) for change in changes)]
    return [replace(point, stage=stage) for stage in STAGES for point in varied]


def operations(stage: str, sizes: Sizes, settings: MethodSettings) -> float:
    """Counted multiply-adds of a stage per picture."""
    forward, backward = forward_macs(sizes), backward_macs(sizes)
    if stage == "sweep":
        return shared_sweep_macs(sizes)
    if stage == "attention_pass":
        return forward
    if stage == "layer_pass":
        return (settings.steps + 1) * (forward + backward)
    forwards, backwards = passes_of_methods(sizes, settings)
    return shared_sweep_macs(sizes) + (1 + forwards) * forward + backwards * backward


def passes_of_methods(sizes: Sizes, settings: MethodSettings) -> tuple[int, int]:
    """Forward and backward passes per picture of all default methods."""
    default = [method for method in (*METHODS.values(), *PIXEL_METHODS.values()) if method.default]
    counts = [cost(method, settings, num_layers=sizes.num_layers, num_targets=NUM_TARGETS) for method in default]
    return sum(forwards for forwards, _ in counts), sum(backwards for _, backwards in counts)


def numbers_moved(stage: str, sizes: Sizes, settings: MethodSettings) -> float:
    """Numbers that softmax, normalisations, activation functions and residual sums pass through, per picture.

    In a block 8 per token and channel, 2 per hidden number of the MLP, and 4 per attention weight where these are
    formed; the sweep never forms them.
    """
    tokens, layers = sizes.num_tokens, sizes.num_layers
    plain = tokens * (8 * sizes.width + sizes.mlp_weights / sizes.width)
    forward = layers * (plain + 4 * sizes.num_heads * tokens**2)
    sweep = plain * (layers - 1) * (1 + sizes.num_heads * layers / 2)
    if stage == "sweep":
        return sweep
    if stage == "attention_pass":
        return forward + layers * 4 * sizes.num_heads * tokens**2  # the summaries
    if stage == "layer_pass":
        return (settings.steps + 1) * 3 * forward
    forwards, backwards = passes_of_methods(sizes, settings)
    return sweep + (1 + forwards) * forward + 2 * backwards * forward


def time_terms(stage: str, sizes: Sizes, pictures: int, settings: MethodSettings, calls: int = 1) -> list[float]:
    """Calls, counted GFLOP, and 10⁹ numbers moved."""
    counted = 2 * operations(stage, sizes, settings) * pictures / 1e9
    return [float(calls), counted, numbers_moved(stage, sizes, settings) * pictures / 1e9]


def rows_of_a_pass(stage: str, sizes: Sizes, pictures: int, settings: MethodSettings) -> int:
    """Pictures that go through at once, each as often as it lacks another head or stands at another step."""
    at_most = settings.internal_batch_size
    held = min(pictures, at_most)
    copies = {"sweep": sizes.num_heads, "attention_pass": 1}.get(stage, settings.steps + 1)
    return held * min(copies, max(1, at_most // held))


def memory_terms(stage: str, sizes: Sizes, pictures: int, settings: MethodSettings) -> list[float]:
    """1, MB of weights, MB of hidden states and of attention weights that a pass holds, MB of pictures."""
    rows = rows_of_a_pass(stage, sizes, pictures, settings) * (sizes.num_layers if stage in WITH_GRAPH else 1)
    per_block = 4 * sizes.width * sizes.context_width + sizes.mlp_weights
    weights = sizes.num_layers * per_block + sizes.embedding / (sizes.num_tokens - 1) + sizes.readout
    hidden = rows * sizes.num_tokens * (8 * sizes.width + sizes.mlp_weights / sizes.width)
    attention = 0 if stage == "sweep" else rows * sizes.num_heads * sizes.num_tokens**2
    pixels = pictures * sizes.embedding / sizes.width
    return [1.0, *(4 * numbers / 2**20 for numbers in (weights, hidden, attention, pixels))]


def fit_law(terms: Floats, values: Floats, held_out: NDArray[np.bool_]) -> Law:
    """Non-negative least squares of the relative errors of `values` [point] by `terms` [point term].

    Errors are those of the fit without the held-out points, coefficients those of the fit with them.
    """
    if held_out.all() or (values <= 0).any():
        raise ValueError("law: expected positive values, and some that are not held out")
    kept = ~held_out
    first = nnls(terms[kept] / values[kept, None], np.ones(int(kept.sum())))[0]
    errors = np.abs(terms @ first / values - 1)
    outside = float(errors[held_out].max()) if held_out.any() else float("nan")
    coefficients = nnls(terms / values[:, None], np.ones(len(values)))[0]
    return Law(coefficients, float(np.median(errors[kept])), float(errors[kept].max()), outside)


def disk_bytes(sizes: Sizes) -> dict[str, int]:
    """Bytes per picture of the arrays that a default run stores, as they lie on disk."""
    heads, patches = sizes.num_layers * sizes.num_heads, sizes.num_tokens - 1
    methods = sum(method.default for method in METHODS.values())
    pixel_methods = sum(method.default for method in PIXEL_METHODS.values())
    return {
        "attention maps of two queries, float32": 2 * 4 * heads * patches,
        "their summaries, five per head, float32": 5 * 4 * heads,
        "effects on the loss and on each target, float64": 8 * heads * (1 + NUM_TARGETS) + 8 * (1 + NUM_TARGETS),
        f"scores of {methods} head methods, float32": methods * 4 * heads,
        f"maps of {pixel_methods} pixel methods, float16": pixel_methods * 2 * patches,
    }


def vit_sizes(layers: int, heads: int, width: int, tokens: int, patch_size: int) -> Sizes:
    """Sizes of a ViT with one special token, an MLP of 4 x width and the regression head."""
    readout = width * 256 + 256 * 128 + 128 * NUM_TARGETS
    embedding = (tokens - 1) * 3 * patch_size**2 * width
    return Sizes(layers, heads, width // heads, width, tokens, 2 * MLP_RATIO * width**2, embedding, readout)


MODELS = {
    "bundled size (DINOv2-S/14)": (vit_sizes(12, 6, 384, 257, 14), 128),
    "ViT-L/16": (vit_sizes(24, 16, 1024, 197, PATCH_SIZE), 100_000),
}


def cost_law_table(quick: bool = False) -> pd.DataFrame:
    """Measure, fit and project: the table, in the order measured, law, projected."""
    measured = list(measure_each(points(quick), torch.get_num_threads()))
    return table_of(measured, project=not quick)


def table_of(measured: Sequence[Measured], *, project: bool = True) -> pd.DataFrame:
    """The table from measured points; without the projections where the points are too small to bear any."""
    rows: list[dict[str, Any]] = []
    laws: list[dict[str, Any]] = []
    projected: list[dict[str, Any]] = []
    for stage in dict.fromkeys(each.point.stage for each in measured):
        own = [each for each in measured if each.point.stage == stage]
        held_out = np.array([each.point.varied == "large" for each in own])
        seconds, peak_mb = (np.array([getattr(each, name) for each in own]) for name in ("seconds", "peak_mb"))
        time = np.array([time_terms(stage, each.sizes, each.point.pictures, SETTINGS) for each in own])
        memory = np.array([memory_terms(stage, each.sizes, each.point.pictures, SETTINGS) for each in own])
        time_law, memory_law = fit_law(time, seconds, held_out), fit_law(memory, peak_mb, held_out)
        for each, by_time, by_memory in zip(own, time, memory, strict=True):
            rows.append(
                {"kind": "measured", "stage": stage, "varied": each.point.varied, "pictures": each.point.pictures}
                | _shape(each.sizes)
                | {"processes": 1, "counted_gflop": by_time[1], "seconds": each.seconds, "peak_mb": each.peak_mb}
                | {"seconds_by_law": float(by_time @ time_law.coefficients)}
                | {"peak_mb_by_law": float(by_memory @ memory_law.coefficients)}
            )
        laws += [{"kind": "law", "stage": stage, "note": text} for text in _in_words(time_law, memory_law)]
        projected += _projected(stage, time_law, memory_law)
    projected = [*projected, *_projected_disk()] if project else []
    return pd.DataFrame([*rows, *laws, *projected], columns=list(COLUMNS))


def _shape(sizes: Sizes) -> dict[str, int]:
    names = {"blocks": "num_layers", "heads": "num_heads", "width": "width", "tokens": "num_tokens"}
    return {column: getattr(sizes, name) for column, name in names.items()}


def _in_words(time: Law, memory: Law) -> list[str]:
    constant, per_gflop, per_moved = time.coefficients
    rate = f"{1 / per_gflop:.0f} GFLOP/s" if per_gflop else "no limit"
    errors = [
        f"relative error: median {law.median_error:.0%}, largest {law.largest_error:.0%}, of the large point kept out "
        f"of the fit {law.held_out_error:.0%}"
        for law in (time, memory)
    ]
    fixed, weights, hidden, attention, pixels = memory.coefficients
    return [
        f"seconds = {constant:.2g} + counted operations / {rate} + numbers moved x {per_moved:.2g} ns; {errors[0]}",
        f"peak MB = {fixed:.0f} + {weights:.2g} x weights + {hidden:.2g} x hidden states of a pass + {attention:.2g} x "
        f"attention weights of a pass + {pixels:.2g} x pictures; {errors[1]}",
    ]


def _projected(stage: str, time: Law, memory: Law) -> list[dict[str, Any]]:
    """Default settings; processes share the pictures evenly and nothing else, each on a machine like this one."""
    rows = []
    settings = MethodSettings(internal_batch_size=SETTINGS.internal_batch_size)
    for name, (sizes, pictures) in MODELS.items():
        peak_mb = float(np.dot(memory_terms(stage, sizes, settings.internal_batch_size, settings), memory.coefficients))
        for processes in PROCESSES:
            own = -(-pictures // processes)
            terms = time_terms(stage, sizes, own, settings, calls=-(-own // settings.internal_batch_size))
            seconds = float(np.dot(terms, time.coefficients))
            rows.append(
                {"kind": "projected", "stage": stage, "model": name, "pictures": pictures, "processes": processes}
                | _shape(sizes)
                | {"counted_gflop": terms[1], "seconds_by_law": seconds, "hours": seconds / 3600}
                | {"peak_mb_by_law": peak_mb, "note": NOTE}
            )
    return rows


def _projected_disk() -> list[dict[str, Any]]:
    return [
        {"kind": "projected", "stage": "disk", "model": name, "pictures": pictures, "note": what}
        | _shape(sizes)
        | {"disk_gb": per_picture * pictures / 1e9}
        for name, (sizes, pictures) in MODELS.items()
        for what, per_picture in disk_bytes(sizes).items()
    ]
