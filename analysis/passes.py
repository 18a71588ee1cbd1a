"""What a run computes of methods: the attention of all heads, and every method asked for; with its cost.

Takes a loaded model and settings; gives passes, each a function from a batch to arrays by the name under which they are
stored. What needs nothing but attention weights stands in one pass. Knows no truth (:mod:`analysis.truth_passes`), no
files, no pieces and no statistics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.models import OpenedModel
from analysis.own_code import code_sha256
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch, MethodSettings
from attribution.contributions import output_contributions
from attribution.deep_lift import deep_lift_completeness
from attribution.gates import PICTURES_PER_PASS, composed_loss_change, gate_ig_with_delta
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS, read_attention_methods, run_method, run_pixel_method
from attribution.pixels import to_patch_grid
from attribution.state import restored_state
from attribution.vit import HeadLayout, head_layout

# A backward pass costs about this many forward passes; used for estimates alone.
BACKWARD_COST = 1.3
PIXEL = "pixel_"
ATTENTION = "attention_maps"
# Modules whose source every score of a method depends on; those of its own function come on top.
CODE = ("attribution.methods", "analysis.passes", "analysis.models")


@dataclass(frozen=True)
class Pass:
    """Things computed together: under which names they are stored, and what each depends on besides model and pictures.

    ``compute(batch, names wanted, pictures in one pass)`` gives the arrays of each name; their first axis is the image.
    ``forwards`` is the cost per picture, in forward passes; ``rows`` are the pictures it is computed for, None for all;
    ``needs`` names the optional fields of the batch it needs.
    """

    name: str
    depends_on: Mapping[str, Mapping[str, Any]]
    compute: Callable[[Batch, Sequence[str], int], dict[str, Arrays]]
    forwards: float
    rows: tuple[int, ...] | None = None
    needs: tuple[str, ...] = ()


def chosen_methods(names: tuple[str, ...], table: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Methods by name; ``default`` stands for those that run unless methods are named, ``all`` for every one, ``-name``
    leaves one out.

    Raises ValueError for a name that neither table of methods has.
    """
    known = {*METHODS, *PIXEL_METHODS, "default", "all"}
    unknown = [name for name in names if name.removeprefix("-") not in known]
    if unknown:
        raise ValueError(f"methods: unknown {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return {
        name: method
        for name, method in table.items()
        if (name in names or "all" in names or ("default" in names and method.default)) and f"-{name}" not in names
    }


def method_settings(settings: CompareSettings, batch_size: int | None = None) -> MethodSettings:
    """The dials of the methods; ``batch_size`` where memory allows fewer pictures in a pass than asked for."""
    return MethodSettings(
        steps=settings.steps,
        seed=settings.seed,
        internal_batch_size=settings.batch_size if batch_size is None else batch_size,
        pixel_steps=settings.pixel_steps,
        permutations=settings.permutations,
    )


def attention_pass(opened: OpenedModel, settings: CompareSettings) -> Pass:
    """Attention maps and predictions (``attention_maps``), and every method asked for that needs attention alone."""
    dials = method_settings(settings)
    heads = _of_attention(chosen_methods(settings.methods))
    pixels = _of_attention(chosen_methods(settings.methods, PIXEL_METHODS))
    depends_on = {ATTENTION: {"code": code_sha256((*CODE, "attribution.heads"))}}
    depends_on |= {name: _dials(dials, method) for name, method in heads.items()}
    depends_on |= {PIXEL + name: _pixel_dials(dials, method) for name, method in pixels.items()}
    layout = head_layout(opened.model)

    def compute(batch: Batch, wanted: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        found = read_attention_methods(
            opened.model,
            batch,
            replace(dials, internal_batch_size=batch_size),
            heads=[name for name in heads if name in wanted],
            pixels=[name for name in pixels if PIXEL + name in wanted],
            head_maps=ATTENTION in wanted,
        )
        arrays = {name: {"scores": scores.numpy()} for name, scores in found.scores.items()}
        arrays |= {PIXEL + name: _pixel_arrays(name, maps, batch, layout) for name, maps in found.maps.items()}
        if ATTENTION in wanted:
            arrays[ATTENTION] = {name: values.numpy() for name, values in found.head_maps.items()}
            arrays[ATTENTION]["predictions"] = found.predictions.numpy()
        return arrays

    return Pass(ATTENTION, depends_on, compute, 1.0)


def method_passes(opened: OpenedModel, settings: CompareSettings, count: int) -> list[Pass]:
    """One pass for each method asked for that needs more than attention, of ``count`` pictures or the first of them."""
    dials, num_targets = method_settings(settings), len(opened.model.config.target_names)
    layout = head_layout(opened.model)

    def of(key: str, method: Method, depends_on: dict[str, Any], compute: Callable[[Batch, int], Arrays]) -> Pass:
        forwards, backwards = cost(method, dials, num_layers=layout.num_layers, num_targets=num_targets)
        return Pass(
            key,
            {key: depends_on},
            lambda batch, _, batch_size: {key: compute(batch, batch_size)},
            forwards + BACKWARD_COST * backwards,
            rows=first_rows(settings.path_pictures, count) if method.is_path else None,
            needs=method.needs,
        )

    def scores(name: str, batch: Batch, batch_size: int) -> Arrays:
        own = replace(dials, internal_batch_size=batch_size)
        if name in MORE_THAN_SCORES:
            return MORE_THAN_SCORES[name](opened, own, batch)
        return {"scores": run_method(name, opened.model, batch, own).numpy()}

    def maps(name: str, batch: Batch, batch_size: int) -> Arrays:
        own = replace(dials, internal_batch_size=batch_size)
        return _pixel_arrays(name, run_pixel_method(name, opened.model, batch, own), batch, layout)

    passes = []
    for name, method in chosen_methods(settings.methods).items():
        if method.of_attention is None:
            passes.append(of(name, method, _dials(dials, method), partial(scores, name)))
    for name, method in chosen_methods(settings.methods, PIXEL_METHODS).items():
        if method.of_attention is None:
            passes.append(of(PIXEL + name, method, _pixel_dials(dials, method), partial(maps, name)))
    return passes


def first_rows(wanted: int, count: int) -> tuple[int, ...] | None:
    """The first pictures, None where that is all of them."""
    return None if wanted >= count else tuple(range(wanted))


def _of_attention(methods: Mapping[str, Method]) -> dict[str, Method]:
    return {name: method for name, method in methods.items() if method.of_attention is not None}


def _dials(dials: MethodSettings, method: Method) -> dict[str, Any]:
    found = {"seed": dials.seed, **_function(method)}
    return found | {"steps": dials.steps} if method.is_path else found


def _pixel_dials(dials: MethodSettings, method: Method) -> dict[str, Any]:
    return {
        "pixel_steps": dials.pixel_steps,
        "noise_samples": dials.noise_samples,
        "seed": dials.seed,
        **_function(method),
    }


def _function(method: Method) -> dict[str, str]:
    """What a method does: its function, and the code behind it where it is this project's."""
    module = str(getattr(method.function, "__module__", ""))
    own = (module,) if module.startswith("attribution.") else ()
    return {"method": _source(method), "code": code_sha256((*CODE, *own))}


def _source(method: Method) -> str:
    """What a method's function is, so that another one under the same name is another method: its source, its defaults
    and what it closes over."""
    function: Any = method.function if method.of_attention is None else method.of_attention
    cells = [repr(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    bound = [getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None), *cells]
    try:
        return f"{inspect.getsource(function)}{bound}"
    except (OSError, TypeError):
        return repr(function)


def _gate_ig(opened: OpenedModel, dials: MethodSettings, batch: Batch) -> Arrays:
    scores, delta = gate_ig_with_delta(opened.model, batch, dials)
    found = scores.detach().cpu().float().numpy()
    # Scores are minus the attributions: their sum is off ℓ(0) − ℓ(1) by delta.
    difference = -found.sum(axis=(1, 2), dtype=np.float64) - delta.detach().cpu().double().numpy()
    return {"scores": found, "delta": delta.detach().cpu().double().numpy(), "difference": difference}


def _gate_ixg_out(opened: OpenedModel, dials: MethodSettings, batch: Batch) -> Arrays:
    """The method's scores, and beside them what each head adds to each output, `[image layer head target]`."""
    predictions, removed = output_contributions(
        opened.model, batch, batch_size=min(dials.internal_batch_size, PICTURES_PER_PASS)
    )
    scores = composed_loss_change(predictions, batch.labels, removed)
    return {"scores": scores.float().cpu().numpy(), "contributions": removed.permute(0, 2, 3, 1).float().cpu().numpy()}


def _deep_lift(opened: OpenedModel, dials: MethodSettings, batch: Batch) -> Arrays:
    """The method's scores, and how far DeepLift's attributions to the pixels are from adding up."""
    scores = run_method("layer_deep_lift", opened.model, batch, dials)
    with restored_state(opened.model):
        delta, difference = deep_lift_completeness(opened.model, batch, dials)
    return {
        "scores": scores.numpy(),
        "delta": delta.detach().cpu().double().numpy(),
        "difference": difference.detach().cpu().double().numpy(),
    }


# Methods whose passes give more than scores.
MORE_THAN_SCORES: dict[str, Callable[[OpenedModel, MethodSettings, Batch], Arrays]] = {
    "gate_ig": _gate_ig,
    "gate_ixg_out": _gate_ixg_out,
    "layer_deep_lift": _deep_lift,
}


def patch_maps(name: str, maps: Tensor, batch: Batch, layout: HeadLayout) -> NDArray[np.float16]:
    """Maps on the patch grid, as float16: scaled to a maximum of 1, since localization knows no scale."""
    if maps.shape[-1] != layout.num_cols:
        maps = to_patch_grid(maps, layout)
    for place in (maps.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
        raise ValueError(f"pixel method {name}: picture {int(batch.indices[place])}: every number is zero")
    return (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy().astype(np.float16)


def _pixel_arrays(name: str, maps: Tensor, batch: Batch, layout: HeadLayout) -> Arrays:
    return {"maps": patch_maps(name, maps, batch, layout)}
