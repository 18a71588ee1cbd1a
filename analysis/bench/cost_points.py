"""One measured point of the cost laws: a random model of given sizes, one stage of a run, its seconds and its memory.

Takes a :class:`Point`; gives a :class:`Measured`. Each point is measured in a process of its own, forked from a server
that has only imported what is needed: peak memory of a process never falls, so two points cannot share one. Knows no
law.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ViTConfig, ViTModel

from analysis.bench.operations import Sizes, sizes_of
from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.heads import attention_maps
from attribution.layers import layer_conductance
from attribution.methods import METHODS, PIXEL_METHODS
from attribution.vit import RegressorConfig, ViTRegressor

PATCH_SIZE, MLP_RATIO = 16, 4
SETTINGS = MethodSettings(steps=2, pixel_steps=2, internal_batch_size=16)


@dataclass(frozen=True)
class Point:
    """A stage, the sizes of a random ViT (patches of 16 pixels, MLP of 4 x width), and the number of pictures.

    ``varied`` names the size that differs from the usual point's.
    """

    stage: str
    varied: str = "none"
    pictures: int = 8
    blocks: int = 4
    heads: int = 3
    width: int = 192
    image_size: int = 160


@dataclass(frozen=True)
class Measured:
    """``peak_mb`` is what the process needed beyond what it held before it made the model, whose sizes are
    ``sizes``."""

    point: Point
    sizes: Sizes
    seconds: float
    peak_mb: float


def _sweep(model: ViTRegressor, batch: Batch) -> None:
    zero_ablation(model, batch, batch_size=SETTINGS.internal_batch_size, route="shared")


def _layer_pass(model: ViTRegressor, batch: Batch) -> None:
    layer_conductance(model, batch, SETTINGS)


def _attention_pass(model: ViTRegressor, batch: Batch) -> None:
    attention_maps(model, batch.pixel_values, batch_size=SETTINGS.internal_batch_size)


def _full_run(model: ViTRegressor, batch: Batch) -> None:
    _sweep(model, batch)
    _attention_pass(model, batch)
    for method in (*METHODS.values(), *PIXEL_METHODS.values()):
        if method.default:
            method.function(model, batch, SETTINGS)


STAGES: dict[str, Callable[[ViTRegressor, Batch], None]] = {
    "sweep": _sweep,
    "layer_pass": _layer_pass,
    "attention_pass": _attention_pass,
    "full_run": _full_run,
}


def random_model(point: Point) -> ViTRegressor:
    """A ViT of random weights with three targets."""
    sizes: dict[str, Any] = {
        "hidden_size": point.width,
        "num_hidden_layers": point.blocks,
        "num_attention_heads": point.heads,
        "intermediate_size": MLP_RATIO * point.width,
        "image_size": point.image_size,
        "patch_size": PATCH_SIZE,
        "attn_implementation": "eager",
    }
    config = ViTConfig(**sizes)
    regressor = RegressorConfig(("a", "b", "c"), ("", "", ""), (0.0,) * 3, (1.0,) * 3, image_size=point.image_size)
    return ViTRegressor(ViTModel(config, add_pooling_layer=False), regressor).eval().requires_grad_(False)


def measure(point: Point, threads: int, tries: int = 2) -> Measured:
    """Measure a point in this process: one picture first, then all of them, the best of some tries."""
    torch.set_num_threads(threads)
    before = _peak_mb()
    torch.manual_seed(0)
    model = random_model(point)
    pictures = torch.randn(point.pictures, 3, point.image_size, point.image_size)
    batch = Batch(pictures, torch.zeros(point.pictures, 3), torch.arange(point.pictures), torch.zeros_like(pictures[0]))
    stage = STAGES[point.stage]
    stage(model, batch.select([0]))
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        stage(model, batch)
        seconds.append(time.perf_counter() - start)
    return Measured(point, sizes_of(model), min(seconds), _peak_mb() - before)


def measure_each(points: Iterable[Point], threads: int) -> Iterator[Measured]:
    """Measure points one after another, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for point in points:
            yield pool.submit(measure, point, threads).result()


def _peak_mb() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
