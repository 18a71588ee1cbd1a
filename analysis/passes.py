"""What a run computes of methods: the attention of all heads, and every method asked for; with its cost.

Takes a loaded model and settings; gives passes, each a function from a batch to arrays by the name under which they are
stored. What needs nothing but attention weights stands in one pass. Knows no truth (:mod:`analysis.truth_passes`), no
files, no pieces and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.held_values import Unknown, describe_unknown, held_sha256
from analysis.models import OpenedModel
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch, MethodSettings
from attribution.method import Method, cost
from attribution.methods import METHODS, PIXEL_METHODS, read_attention_methods, run_pixel_method, run_with_extras
from attribution.pixels import to_patch_grid
from attribution.vit import HeadLayout, head_layout

# A backward pass costs about this many forward passes; used for estimates alone.
BACKWARD_COST = 1.3
PIXEL = "pixel_"
ATTENTION = "attention_maps"
# What a score depends on that cannot be known: such scores are computed anew by every run.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pass:
    """Things computed together: under which names they are stored, and what each depends on besides model, pictures and
    the code of ``compute``, which counts by itself (:mod:`analysis.piecework`).

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
    of_heads = _of_attention(chosen_methods(settings.methods))
    of_pixels = _of_attention(chosen_methods(settings.methods, PIXEL_METHODS))
    depends_on: dict[str, dict[str, Any]] = {ATTENTION: {}}
    depends_on |= {name: _dials(dials, method) for name, method in of_heads.items()}
    depends_on |= {PIXEL + name: _pixel_dials(dials, method) for name, method in of_pixels.items()}
    # Names alone: what the pass runs does not depend on which methods share it.
    heads, pixels = tuple(of_heads), tuple(of_pixels)
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
        scores, extras = run_with_extras(name, opened.model, batch, own)
        return {"scores": scores.numpy()} | {key: values.numpy() for key, values in extras.items()}

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


def _function(method: Method) -> dict[str, Any]:
    return told_apart({method.name: method})


def told_apart(methods: Mapping[str, Method]) -> dict[str, Any]:
    """What these methods are, all that their functions hold included; where that cannot be known the reason stands
    under :data:`UNKNOWN`."""
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name, method in methods.items():
        try:
            found[name] = held_sha256([method.function, method.of_attention, method.with_extras])
        except Unknown as error:
            unknown.append(describe_unknown(name, error))
    return {"methods": found} | ({UNKNOWN: unknown} if unknown else {})


def patch_maps(name: str, maps: Tensor, batch: Batch, layout: HeadLayout) -> NDArray[np.float16]:
    """Maps on the patch grid, as float16: scaled to a maximum of 1, since localization knows no scale."""
    if maps.shape[-1] != layout.num_cols:
        maps = to_patch_grid(maps, layout)
    for place in (maps.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
        raise ValueError(f"pixel method {name}: picture {int(batch.indices[place])}: every number is zero")
    return (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy().astype(np.float16)


def _pixel_arrays(name: str, maps: Tensor, batch: Batch, layout: HeadLayout) -> Arrays:
    return {"maps": patch_maps(name, maps, batch, layout)}
