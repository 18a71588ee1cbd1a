"""What a run computes of methods: the attention of all heads, and every method asked for; with its cost.

Takes a loaded model and settings; gives passes, each a function from a batch to arrays by the name under which they are
stored. What needs nothing but attention weights stands in one pass, what needs contexts and the outputs' gradients at
them in another. Knows no truth (:mod:`analysis.truth_passes`), no
files, no pieces and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.held_values import Unknown, describe_unknown, held_sha256
from analysis.lent_contexts import lacking
from analysis.models import OpenedModel
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.batch import Batch, MethodSettings
from attribution.method import Method, cost
from attribution.methods import (
    METHODS,
    PIXEL_METHODS,
    read_attention_methods,
    read_gradient_methods,
    run_pixel_method,
    run_with_extras,
)
from attribution.pixels import to_patch_grid
from attribution.vit import HeadLayout, head_layout

# A backward pass costs about this many forward passes; used for estimates alone.
BACKWARD_COST = 1.3
PIXEL = "pixel_"
ATTENTION = "attention_maps"
GRADIENTS = "gradients"
# What a score depends on that cannot be known: such scores are computed anew by every run.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pass:
    """Things computed together: under which names they are stored, and what each depends on besides model, pictures and
    the code of ``compute``, which counts by itself (:mod:`analysis.piecework`).

    ``compute(batch, names wanted, pictures in one pass)`` gives the arrays of each name; their first axis is the image.
    ``forwards`` is the cost per picture, in forward passes; ``rows`` are the pictures it is computed for, None for all;
    ``needs`` names the optional fields of the batch it needs; where the things computed differ in that, ``needs_of``
    has those of each.
    """

    name: str
    depends_on: Mapping[str, Mapping[str, Any]]
    compute: Callable[[Batch, Sequence[str], int], dict[str, Arrays]]
    forwards: float
    rows: tuple[int, ...] | None = None
    needs: tuple[str, ...] = ()
    needs_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def needed(self, name: str) -> tuple[str, ...]:
        """The optional fields of the batch that one of the things computed needs."""
        return self.needs_of.get(name, self.needs)


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


def of_these_pictures(settings: CompareSettings, source: PictureSource) -> CompareSettings:
    """The settings without methods that these pictures have not what they need for, where nobody named them.

    Raises ValueError for one that somebody did.
    """
    missing, left_out = lacking(source), []
    for table in (METHODS, PIXEL_METHODS):
        for name, method in chosen_methods(settings.methods, table).items():
            why = [missing[field] for field in method.needs if field in missing]
            if why and name in settings.methods:
                raise ValueError(f"methods: {name}: {why[0]}")
            if why:
                left_out.append(f"-{name}")
    return replace(settings, methods=(*settings.methods, *left_out)) if left_out else settings


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


def gradient_passes(opened: OpenedModel, settings: CompareSettings) -> list[Pass]:
    """One pass for all methods asked for that need nothing but contexts and gradients at them, if there are any."""
    dials, num_targets = method_settings(settings), len(opened.model.config.target_names)
    chosen = {name: method for name, method in chosen_methods(settings.methods).items() if method.of_gradients}
    if not chosen:
        return []
    names = tuple(chosen)

    def compute(batch: Batch, wanted: Sequence[str], batch_size: int) -> dict[str, Arrays]:
        own = replace(dials, internal_batch_size=batch_size)
        found = read_gradient_methods(opened.model, batch, own, [name for name in names if name in wanted])
        return {
            name: {"scores": scores.numpy()} | {key: values.numpy() for key, values in extras.items()}
            for name, (scores, extras) in found.items()
        }

    return [
        Pass(
            GRADIENTS,
            {name: _dials(dials, method) for name, method in chosen.items()},
            compute,
            _together(chosen.values(), dials, head_layout(opened.model).num_layers, num_targets),
            needs=tuple(sorted({field for method in chosen.values() for field in method.needs})),
            needs_of={name: method.needs for name, method in chosen.items()},
        )
    ]


def _together(methods: Iterable[Method], dials: MethodSettings, num_layers: int, num_targets: int) -> float:
    """Cost of methods that share a forward pass and the backward passes; those that lend contexts are had once each."""
    lending: dict[tuple[str, ...], int] = {}
    backwards = 0
    for method in methods:
        forwards, backwards = cost(method, dials, num_layers=num_layers, num_targets=num_targets)
        lending[method.needs] = forwards - 1
    return 1 + sum(lending.values()) + BACKWARD_COST * backwards


def method_passes(opened: OpenedModel, settings: CompareSettings, count: int) -> list[Pass]:
    """One pass for each method asked for that stands in no shared one, of ``count`` pictures or the first of them."""
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
        if method.of_attention is None and method.of_gradients is None:
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
            others = [] if method.of_gradients is None else [method.of_gradients]
            found[name] = held_sha256([method.function, method.of_attention, method.with_extras, *others])
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
