"""The methods on trial, by name, and the way to run one.

The tables stand in `attribution.head_methods` and `attribution.pixel_methods`. A head method is a function (model,
batch, settings) -> scores `[image layer head]`, positive = removing the head raises the loss; a pixel method gives
`[image row col]` and takes a `target` too. Adding one is one line:

    METHODS["mine"] = Method("mine", my_function)

`attribution.contract.check_method` tells whether it keeps the promises of a head method. Knows no data set, and no
truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gradient_readings import read_gradients
from attribution.head_methods import METHODS
from attribution.heads import layout_with_cls, map_arrays, read_attention
from attribution.method import Method, cost
from attribution.pixel_methods import PIXEL_METHODS
from attribution.state import restored_state
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval

__all__ = ["METHODS", "PIXEL_METHODS", "AttentionReadings", "Method", "MethodSettings", "cost",
           "read_attention_methods", "read_gradient_methods", "run_method", "run_pixel_method",
           "run_with_extras"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttentionReadings:
    """What one forward pass gave: `predictions` [image target]; by name `scores` of head methods and `maps` of pixel
    methods, as `run_method` and `run_pixel_method` give them; and `head_maps` (`attribution.heads.map_arrays`)."""

    predictions: Tensor
    scores: dict[str, Tensor]
    maps: dict[str, Tensor]
    head_maps: dict[str, Tensor]


def read_attention_methods(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    *,
    heads: Sequence[str] = (),
    pixels: Sequence[str] = (),
    head_maps: bool = False,
) -> AttentionReadings:
    """Run several methods that need nothing but attention (those with `of_attention`) on one shared forward pass.

    Raises `ValueError` as `run_method` does.
    """
    wanted = {f"head {name}": _named(name, METHODS) for name in heads}
    wanted |= {f"pixel {name}": _named(name, PIXEL_METHODS) for name in pixels}
    functions = {key: method.of_attention for key, method in wanted.items() if method.of_attention is not None}
    if len(functions) < len(wanted):
        others = ", ".join(sorted(key for key in wanted if key not in functions))
        raise ValueError(f"methods: expected some that need attention alone, got {others}")
    require_eval(model)
    layout = layout_with_cls(model)

    def read(layers: list[Tensor]) -> dict[str, Tensor]:
        found = {key: function(layers, layout) for key, function in functions.items()}
        return found | (map_arrays(layers, layout) if head_maps else {})

    with restored_state(model):
        predictions, found = read_attention(model, batch.pixel_values, read, batch_size=settings.internal_batch_size)
    return AttentionReadings(
        predictions.cpu(),
        {name: _scores(wanted[f"head {name}"], found.pop(f"head {name}"), model, batch) for name in heads},
        {name: _maps(wanted[f"pixel {name}"], found.pop(f"pixel {name}"), batch) for name in pixels},
        {name: values.cpu() for name, values in found.items()},
    )


def read_gradient_methods(
    model: ViTRegressor, batch: Batch, settings: MethodSettings, heads: Sequence[str]
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Run several methods that need nothing but contexts and gradients at them (those with `of_gradients`) on shared
    passes; by name the scores, and what else the method gives, as `run_with_extras` does.

    Raises `ValueError` as `run_method` does.
    """
    wanted = {name: _named(name, METHODS) for name in heads}
    functions = {name: method.of_gradients for name, method in wanted.items() if method.of_gradients is not None}
    if len(functions) < len(wanted):
        others = ", ".join(sorted(name for name in wanted if name not in functions))
        raise ValueError(f"methods: expected some that need gradients at contexts alone, got {others}")
    for method in wanted.values():
        _require_fields(method, batch)
    require_eval(model)
    lent = tuple(sorted({field for method in wanted.values() for field in method.needs}))
    found: dict[str, list[tuple[Tensor, dict[str, Tensor]]]] = {name: [] for name in wanted}
    with restored_state(model):
        for readings in read_gradients(model, batch, settings, lent):
            for name, function in functions.items():
                found[name].append(function(readings))
    return {name: _joined(method, found[name], model, batch) for name, method in wanted.items()}


def run_method(name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Scores of a head method, float32 `[image layer head]` on the CPU; the model is left as found.

    Raises `ValueError`, naming the method, for a batch without a field that the method needs; for scores of another
    shape, not finite or all zero; for an unknown name; for a model in train mode.
    """
    method = _named(name, METHODS)
    if method.of_attention is not None:
        return read_attention_methods(model, batch, settings, heads=[name]).scores[name]
    if method.of_gradients is not None:
        return read_gradient_methods(model, batch, settings, [name])[name][0]
    _require_fields(method, batch)
    require_eval(model)
    with restored_state(model):
        found = method.function(model, batch, settings)
    return _scores(method, found, model, batch)


def run_with_extras(
    name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """`run_method`, and what else the method gives of each picture (`Method.with_extras`), on the CPU; often nothing.

    Raises `ValueError` as `run_method` does, and for extras that are not of every picture, or not finite.
    """
    method = _named(name, METHODS)
    if method.of_gradients is not None:
        return read_gradient_methods(model, batch, settings, [name])[name]
    if method.with_extras is None:
        return run_method(name, model, batch, settings), {}
    _require_fields(method, batch)
    require_eval(model)
    with restored_state(model):
        found, extras = method.with_extras(model, batch, settings)
    return _joined(method, [(found, extras)], model, batch)


def run_pixel_method(
    name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None
) -> Tensor:
    """Maps of a pixel method for the loss, or for output `target`: float32 `[image row col]` on the CPU, not negative.

    Raises `ValueError` as `run_method` does.
    """
    method = _named(name, PIXEL_METHODS)
    if method.of_attention is not None:  # reads no output, so the target changes nothing
        return read_attention_methods(model, batch, settings, pixels=[name]).maps[name]
    _require_fields(method, batch)
    require_eval(model)
    with restored_state(model):
        found = method.function(model, batch, settings, target)
    return _maps(method, found, batch)


def _joined(
    method: Method, parts: Sequence[tuple[Tensor, dict[str, Tensor]]], model: ViTRegressor, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores and extras of all parts of a batch, on the CPU."""
    scores = parts[0][0] if len(parts) == 1 else torch.cat([found for found, _ in parts])
    extras = {key: torch.cat([other[key] for _, other in parts]).detach().cpu() for key in parts[0][1]}
    for key, values in extras.items():
        if len(values) != len(batch) or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"method {method.name}: expected finite numbers of {len(batch)} pictures, got {key} otherwise"
            )
    return _scores(method, scores, model, batch), extras


def _named(name: str, methods: Mapping[str, Method]) -> Method:
    if name not in methods:
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(methods)}")
    return methods[name]


def _require_fields(method: Method, batch: Batch) -> None:
    missing = [name for name in method.needs if getattr(batch, name) is None]
    if missing:
        raise ValueError(f"method {method.name}: needs {', '.join(missing)}, which this batch does not have")


def _scores(method: Method, found: object, model: ViTRegressor, batch: Batch) -> Tensor:
    scores = _finite(method, found)
    modules = attention_modules(model)
    expected = [len(batch), len(modules), num_heads_of(modules[0])]
    if list(scores.shape) != expected:
        raise ValueError(
            f"method {method.name}: expected scores [image layer head] = {expected}, got {list(scores.shape)}"
        )
    return scores


def _maps(method: Method, found: object, batch: Batch) -> Tensor:
    maps = _finite(method, found)
    if maps.dim() != 3 or len(maps) != len(batch):
        raise ValueError(f"method {method.name}: expected maps [{len(batch)} row col], got {list(maps.shape)}")
    if bool((maps < 0).any()):
        raise ValueError(f"method {method.name}: expected maps that are not negative")
    return maps


def _finite(method: Method, found: object) -> Tensor:
    if not isinstance(found, Tensor):
        raise ValueError(f"method {method.name}: expected a tensor, got a {type(found).__name__}")
    values = found.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"method {method.name}: found NaN or infinity, expected finite numbers")
    if not bool(values.any()):
        raise ValueError(f"method {method.name}: every number is zero")
    return values
