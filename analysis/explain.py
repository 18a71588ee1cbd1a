"""Everything that needs the model: the truth, every method's scores, attention maps and pixel maps, per picture.

Takes a loaded model, pictures and settings; gives :class:`Explained`, plain arrays from which all tables and figures
follow without a model. Every finished piece is stored and reused (:mod:`analysis.score_files`). Knows no statistics.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

import attribution
from analysis.models import OpenedModel
from analysis.pictures import Pictures
from analysis.report import write_atomically
from analysis.score_files import Arrays, ScoreFolder, compute_scores
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from attribution.ablation import zero_ablation
from attribution.batch import Batch, MethodSettings
from attribution.gates import gate_ig_with_delta
from attribution.heads import QUERIES, attention_maps
from attribution.methods import METHODS, PIXEL_METHODS, Method, cost, run_method, run_pixel_method
from attribution.pixels import to_patch_grid
from attribution.vit import head_layout, loss_per_image

Floats = NDArray[np.float64]
# A backward pass costs about this many forward passes; used for estimates alone.
BACKWARD_COST = 1.3


@dataclass(frozen=True, eq=False)
class Explained:
    """Per-picture results. ``scores`` name -> [image layer head]; ``pixel_maps`` name -> [image row col] on the patch
    grid; ``maps`` query -> [image layer head row col]; ``head_columns`` name -> [image layer head]; ``predictions``
    [image target] in units; ``timings`` name -> seconds and process peak memory; ``completeness`` name -> median error
    relative to the difference it should sum to."""

    truth: Truth
    scores: dict[str, Floats]
    pixel_maps: dict[str, Floats]
    maps: dict[str, Floats]
    head_columns: dict[str, Floats]
    predictions: Floats
    timings: dict[str, dict[str, float]]
    completeness: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One thing to compute and what it costs per picture, in forward passes."""

    name: str
    forwards: float


def chosen_methods(names: tuple[str, ...], table: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Methods by name; ``default`` stands for those that run unless methods are named, ``all`` for every one.

    Raises ValueError for a name that neither table of methods has.
    """
    known = {*METHODS, *PIXEL_METHODS, "default", "all"}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"methods: unknown {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return {
        name: method
        for name, method in table.items()
        if name in names or "all" in names or ("default" in names and method.default)
    }


def method_settings(settings: CompareSettings) -> MethodSettings:
    """The dials of the methods."""
    return MethodSettings(
        steps=settings.steps,
        seed=settings.seed,
        internal_batch_size=settings.batch_size,
        pixel_steps=settings.pixel_steps,
    )


def plan(opened: OpenedModel, settings: CompareSettings) -> list[Stage]:
    """What will be computed, in order, with its cost per picture."""
    layout = head_layout(opened.model)
    dials, num_targets = method_settings(settings), len(opened.model.config.target_names)
    # The sweep reuses what lies before the ablated block: (L + 1) / 2L of a full pass per head.
    sweep = 2.0 + layout.num_heads * (layout.num_layers + 1) / 2
    stages = [Stage("attention_maps", 1.0), Stage("ablation_zero", sweep)]
    for prefix, table in (("", METHODS), ("pixel_", PIXEL_METHODS)):
        for name, method in chosen_methods(settings.methods, table).items():
            forwards, backwards = cost(method, dials, num_layers=layout.num_layers, num_targets=num_targets)
            stages.append(Stage(prefix + name, forwards + BACKWARD_COST * backwards))
    return stages


def forward_seconds(opened: OpenedModel, pictures: Pictures, settings: CompareSettings) -> float:
    """Seconds of one forward pass of one picture, measured on a few pictures."""
    model = opened.model
    pixel_values = model.preprocess(pictures.images[: min(16, len(pictures.images))]).to(model.device, model.dtype)
    with torch.inference_mode():
        model(pixel_values[:2])
        start = time.perf_counter()
        model(pixel_values)
    return (time.perf_counter() - start) / len(pixel_values)


def make_batch(opened: OpenedModel, pictures: Pictures) -> Batch:
    """Pictures as the methods take them; the baseline is the mean picture, preprocessed."""
    model, config = opened.model, opened.model.config
    mean = torch.tensor(config.image_mean, dtype=torch.float64)
    std = torch.tensor(config.image_std, dtype=torch.float64)
    baseline = ((torch.from_numpy(pictures.mean_image) / 255 - mean) / std).permute(2, 0, 1)
    return Batch(
        pixel_values=model.preprocess(pictures.images).to(model.device, model.dtype),
        labels=model.standardise(pictures.labels).to(model.device, model.dtype),
        indices=torch.from_numpy(pictures.indices),
        baseline_pixel_values=baseline.to(model.device, model.dtype),
    )


def require_better_than_mean(predictions: Tensor, labels: Tensor, name: str) -> None:
    """Refuse to explain a model that is worse than predicting the mean label of these pictures (ValueError)."""
    model_error = loss_per_image(predictions, labels).mean().item()
    mean_error = loss_per_image(labels.mean(dim=0, keepdim=True).expand_as(labels), labels).mean().item()
    if model_error >= mean_error:
        raise ValueError(
            f"--model {name}: its error on these pictures ({model_error:.3g}) is not below that of predicting their "
            f"mean ({mean_error:.3g}); there is nothing to explain"
        )


def explain(
    opened: OpenedModel,
    pictures: Pictures,
    settings: CompareSettings,
    folder: Path,
    on_progress: Callable[[str, float], None],
) -> Explained:
    """Compute or reuse everything; ``on_progress(stage, cost done)`` counts in forward passes of one picture."""
    model, batch = opened.model, make_batch(opened, pictures)
    dials = method_settings(settings)
    identity = {
        "model": opened.sha256,
        "config": asdict(model.config),
        "pictures": pictures.sha256,
        "device": settings.device,
        "batch_size": settings.batch_size,
        "software": _software(),
    }
    store = ScoreFolder(folder, identity, len(batch))
    costs = {stage.name: stage.forwards for stage in plan(opened, settings)}
    timings = _Timings(folder / "timings.json")
    layout = head_layout(model)

    def scored(name: str, parameters: dict[str, Any], compute: Callable[[Batch], Arrays]) -> Arrays:
        def of_piece(piece: slice) -> Arrays:
            with timings.measured(name):
                return compute(batch.select(piece))

        return compute_scores(
            store, name, parameters, of_piece, on_piece=lambda count: on_progress(name, count * costs[name])
        )[0]

    def maps_of(part: Batch) -> Arrays:
        found = attention_maps(model, part.pixel_values, batch_size=settings.batch_size)
        arrays = {f"{query}_map": found.maps[query].cpu().numpy() for query in QUERIES}
        arrays |= {f"{query}_special_mass": found.special_mass[query].cpu().numpy() for query in QUERIES}
        arrays |= {f"{query}_entropy": found.entropy[query].cpu().numpy() for query in QUERIES}
        return arrays | {"attention_distance": found.distance_patches.cpu().numpy()}

    def truth_of(part: Batch) -> Arrays:
        found = zero_ablation(model, part, batch_size=settings.batch_size)
        return {
            "delta_loss": found.delta_loss.numpy(),
            "delta_target_sq": found.delta_target_sq.numpy(),
            "intact_loss": found.intact_loss.numpy(),
            "predictions": model.to_units(found.intact_predictions).numpy(),
        }

    maps = scored("attention_maps", {}, maps_of)
    if not opened.is_control:
        with torch.inference_mode():
            intact = torch.cat([model(part) for part in batch.pixel_values.split(settings.batch_size)])
        require_better_than_mean(intact, batch.labels, opened.name)
    effects = scored("ablation_zero", {}, truth_of)
    scores: dict[str, Floats] = {}
    completeness: dict[str, float] = {}
    for name in chosen_methods(settings.methods):
        parameters = {"steps": dials.steps, "seed": dials.seed, "method": _source(METHODS[name])}
        if name == "gate_ig":
            found = scored(name, parameters, partial(_gate_ig, opened, dials))
            completeness[name] = float(np.median(np.abs(found["delta"]) / np.abs(found["difference"])))
        else:
            found = scored(name, parameters, partial(_scores_of, name, opened, dials))
        scores[name] = found["scores"].astype(np.float64)
    pixel_maps: dict[str, Floats] = {}
    for name in chosen_methods(settings.methods, PIXEL_METHODS):

        def pixels_of(part: Batch, name: str = name) -> Arrays:
            found = run_pixel_method(name, model, part, dials)
            if found.shape[-1] != layout.num_cols:
                found = to_patch_grid(found, layout)
            empty = torch.nonzero(found.amax(dim=(1, 2)) == 0)
            if len(empty):
                raise ValueError(f"pixel method {name}: picture {int(part.indices[empty[0, 0]])}: every number is zero")
            # Stored as float16: scaled to a maximum of 1, since localization knows no scale.
            return {"maps": (found / found.amax(dim=(1, 2), keepdim=True)).numpy().astype(np.float16)}

        parameters = {"pixel_steps": dials.pixel_steps, "seed": dials.seed, "method": _source(PIXEL_METHODS[name])}
        found = scored(f"pixel_{name}", parameters, pixels_of)
        pixel_maps[name] = found["maps"].astype(np.float64)
    timings.save()
    return Explained(
        truth=Truth("zero", effects["delta_loss"], effects["delta_target_sq"], effects["intact_loss"]),
        scores=scores,
        pixel_maps=pixel_maps,
        maps={query: maps[f"{query}_map"] for query in QUERIES},
        head_columns={
            "mass_special": maps["cls_special_mass"].astype(np.float64),
            "entropy": maps["cls_entropy"].astype(np.float64),
            "attention_distance": maps["attention_distance"].astype(np.float64),
        },
        predictions=effects["predictions"],
        timings=timings.seconds,
        completeness=completeness,
    )


def _software() -> dict[str, str]:
    """What computes the scores: versions of the libraries, and a hash of this project's own methods."""
    digest = hashlib.sha256()
    for path in sorted(Path(attribution.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return {"attribution": digest.hexdigest(), "torch": torch.__version__, "transformers": transformers.__version__}


def _source(method: Method) -> str:
    """The source of a method's function, so that another function under the same name is another method."""
    try:
        return inspect.getsource(method.function)
    except (OSError, TypeError):
        return repr(method.function)


def _scores_of(name: str, opened: OpenedModel, dials: MethodSettings, part: Batch) -> Arrays:
    return {"scores": run_method(name, opened.model, part, dials).numpy()}


def _gate_ig(opened: OpenedModel, dials: MethodSettings, part: Batch) -> Arrays:
    scores, delta = gate_ig_with_delta(opened.model, part, dials)
    found = scores.detach().cpu().to(torch.float32).numpy()
    # Scores are minus the attributions: their sum is off ℓ(0) − ℓ(1) by delta.
    difference = -found.sum(axis=(1, 2), dtype=np.float64) - delta.detach().cpu().double().numpy()
    return {"scores": found, "delta": delta.detach().cpu().double().numpy(), "difference": difference}


class _Timings:
    """Seconds and peak memory per stage, kept beside the scores so that a resumed run still knows them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        self._fresh: set[str] = set()

    def measured(self, name: str) -> _Measured:
        if name not in self._fresh:
            self._fresh.add(name)
            # Pieces that a killed run has finished keep their seconds.
            if name not in self.seconds or not any((self.path.parent / f"{name}.parts").glob("*.safetensors")):
                self.seconds[name] = {"seconds": 0.0, "peak_mb": 0.0}
        return _Measured(self, name)

    def add(self, name: str, seconds: float) -> None:
        scale = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        before = self.seconds[name]
        self.seconds[name] = {"seconds": before["seconds"] + seconds, "peak_mb": max(before["peak_mb"], peak)}
        self.save()

    def save(self) -> None:
        write_atomically(self.path, (json.dumps(self.seconds, indent=1, sort_keys=True) + "\n").encode())


@dataclass
class _Measured:
    timings: _Timings
    name: str
    start: float = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.timings.add(self.name, time.perf_counter() - self.start)


def with_output(settings: CompareSettings, num_pictures: int) -> CompareSettings:
    """Settings with the output folder filled in: ``results/<model>-<data>-<pictures>``."""
    if settings.output_dir is not None:
        return settings
    model, data = Path(settings.model).name, Path(settings.data).name
    return replace(settings, output_dir=f"results/{model}-{data}-{num_pictures}")
