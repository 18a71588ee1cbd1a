"""The methods on trial, by name: what each is, where it comes from, what it costs; and the way to run one.

A head method is a function (model, batch, settings) -> scores `[image layer head]`, positive = removing the head
raises the loss; a pixel method gives `[image row col]` and takes a `target` too. Adding one is one line:

    METHODS["mine"] = Method("mine", my_function)

`attribution.contract.check_method` tells whether it keeps the promises of a head method. Knows no data set, and no
truth.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.gates import gate_ig, gate_ig_out, gate_ixg, gate_ixg_out, gate_saliency
from attribution.heads import cls_mass
from attribution.layers import conductance_out, layer_conductance, layer_ig
from attribution.pixels import integrated_gradients, saliency
from attribution.rollout import chefer, chefer_map, rollout, rollout_drop
from attribution.state import restored_state
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval

Cost = int | Callable[[MethodSettings, int, int], int]  # passes per picture, or a function (settings, layers, targets)


@dataclass(frozen=True)
class Method:
    """A method and what to know about it.

    `signed`: the score predicts the sign of the effect too; an unsigned one has a `direction`, "+" where a larger
    value is fixed beforehand to mean a head that matters more, "-" where a smaller one is. `forwards` and `backwards`
    per picture. `approximate`: has no rule for some operation of the model. `default`: run unless methods are named.
    """

    name: str
    function: Callable[..., Tensor]
    family: str = "other"
    paper: str = ""
    signed: bool = True
    direction: str = ""
    forwards: Cost = 1
    backwards: Cost = 0
    approximate: bool = False
    default: bool = True
    note: str = ""


def random_scores(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Control: uniform on [0, 1), drawn for each picture from `default_rng([seed, 7, index])`."""
    modules = attention_modules(model)
    shape = (len(modules), num_heads_of(modules[0]))
    rows = [np.random.default_rng([settings.seed, 7, int(index)]).random(shape) for index in batch.indices]
    return torch.from_numpy(np.stack(rows))


def layer_index(model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Control: the number of the layer, from 0."""
    modules = attention_modules(model)
    layers = torch.arange(len(modules), dtype=torch.float64)
    return layers[None, :, None].repeat(len(batch), 1, num_heads_of(modules[0]))


def _by_name(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS: dict[str, Method] = _by_name(
    Method("gate_saliency", gate_saliency, "gates", "1905.10650", signed=False, direction="+", backwards=1),
    Method("gate_ixg", gate_ixg, "gates", "1605.01713", backwards=1, note="blind to what is quadratic in the effect"),
    Method(
        "gate_ixg_out",
        gate_ixg_out,
        "gates",
        "1605.01713",
        backwards=lambda settings, layers, targets: targets,
        note="in units of the loss",
    ),
    Method(
        "gate_ig",
        gate_ig,
        "gates",
        "1703.01365",
        forwards=lambda settings, layers, targets: settings.steps,
        backwards=lambda settings, layers, targets: settings.steps,
        note="all heads leave together",
    ),
    Method(
        "gate_ig_out",
        gate_ig_out,
        "gates",
        "1703.01365",
        forwards=lambda settings, layers, targets: settings.steps + 1,
        backwards=lambda settings, layers, targets: settings.steps * targets,
        default=False,
        note="in units of the loss",
    ),
    Method(
        "layer_conductance",
        layer_conductance,
        "layers",
        "1805.12233",
        forwards=lambda settings, layers, targets: settings.steps + 1,
        backwards=lambda settings, layers, targets: settings.steps + 1,
        note="one pass per node for all blocks",
    ),
    Method(
        "conductance_out",
        conductance_out,
        "layers",
        "1805.12233",
        forwards=lambda settings, layers, targets: settings.steps + 2,
        backwards=lambda settings, layers, targets: (settings.steps + 1) * targets,
        default=False,
        note="in units of the loss",
    ),
    Method(
        "layer_ig",
        layer_ig,
        "layers",
        "1703.01365",
        forwards=lambda settings, layers, targets: layers * (settings.steps + 2),
        backwards=lambda settings, layers, targets: layers * settings.steps,
        default=False,
        note="block by block, hence expensive",
    ),
    Method("cls_mass", cls_mass, "attention", "2104.14294", signed=False, direction="+"),
    Method("chefer", chefer, "attention x gradient", "2103.15679", signed=False, direction="+", backwards=1),
    Method("rollout_drop", rollout_drop, "attention", "2005.00928", signed=False, direction="+"),
    Method("random", random_scores, "control", signed=False, direction="+", forwards=0),
    Method("layer_index", layer_index, "control", signed=False, direction="+", forwards=0),
)

PIXEL_METHODS: dict[str, Method] = _by_name(
    Method("saliency", saliency, "pixels", "1312.6034", signed=False, direction="+", backwards=1),
    Method(
        "integrated_gradients",
        integrated_gradients,
        "pixels",
        "1703.01365",
        signed=False,
        direction="+",
        forwards=lambda settings, layers, targets: settings.pixel_steps,
        backwards=lambda settings, layers, targets: settings.pixel_steps,
    ),
    Method("rollout", rollout, "attention", "2005.00928", signed=False, direction="+", note="reads no output"),
    Method("chefer", chefer_map, "attention x gradient", "2103.15679", signed=False, direction="+", backwards=1),
)

LEFT_OUT: dict[str, str] = {
    "LRP": "has no rule for LayerNorm and GELU",
    "GuidedBackprop": "touches only the two ReLUs of the regression head, the backbone has none",
    "Deconvolution": "touches only the two ReLUs of the regression head, the backbone has none",
    "KernelShap, Lime": "need thousands of forward passes per picture for the gates of all heads",
    "LayerGradCam (for heads)": "averages over the channels of all heads, so it cannot tell heads apart",
}


def run_method(name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings) -> Tensor:
    """Scores of a head method, float32 `[image layer head]` on the CPU; the model is left as found.

    Raises `ValueError`, naming the method, for scores of another shape, not finite or all zero; for an unknown name;
    for a model in train mode.
    """
    method = _named(name, METHODS)
    modules = attention_modules(model)
    scores = _run(method, model, lambda: method.function(model, batch, settings))
    expected = [len(batch), len(modules), num_heads_of(modules[0])]
    if list(scores.shape) != expected:
        raise ValueError(f"method {name}: expected scores [image layer head] = {expected}, got {list(scores.shape)}")
    return scores


def run_pixel_method(
    name: str, model: ViTRegressor, batch: Batch, settings: MethodSettings, target: int | None = None
) -> Tensor:
    """Maps of a pixel method for the loss, or for output `target`: float32 `[image row col]` on the CPU, not negative.

    Raises `ValueError` as `run_method` does.
    """
    method = _named(name, PIXEL_METHODS)
    maps = _run(method, model, lambda: method.function(model, batch, settings, target))
    if maps.dim() != 3 or len(maps) != len(batch):
        raise ValueError(f"method {name}: expected maps [{len(batch)} row col], got {list(maps.shape)}")
    if bool((maps < 0).any()):
        raise ValueError(f"method {name}: expected maps that are not negative")
    return maps


def cost(method: Method, settings: MethodSettings, *, num_layers: int, num_targets: int) -> tuple[int, int]:
    """Forward and backward passes per picture."""
    forwards, backwards = (
        passes if isinstance(passes, int) else passes(settings, num_layers, num_targets)
        for passes in (method.forwards, method.backwards)
    )
    return forwards, backwards


def describe(
    methods: Mapping[str, Method] | None = None,
    settings: MethodSettings | None = None,
    *,
    num_layers: int = 12,
    num_targets: int = 3,
) -> str:
    """A text table of the methods (head methods, then pixel methods, unless given) and of what is left out, and why."""
    settings = MethodSettings() if settings is None else settings
    rows: list[tuple[str, ...]] = [
        ("method", "gives", "family", "paper", "sign", "fwd", "bwd", "default", "what it is")
    ]
    for gives, table in (("heads", METHODS), ("pixels", PIXEL_METHODS)) if methods is None else (("", methods),):
        for name, method in table.items():
            passes = cost(method, settings, num_layers=num_layers, num_targets=num_targets)
            sign = "signed" if method.signed else method.direction
            doc = (inspect.getdoc(method.function) or "").split("\n")[0].rstrip(".")
            what = "; ".join(part for part in (doc, method.note, "approximate" if method.approximate else "") if part)
            default = "yes" if method.default else "no"
            rows.append((name, gives, method.family, method.paper, sign, *map(str, passes), default, what))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        "",
        f"fwd, bwd: passes per picture at {settings.steps} steps, {num_layers} layers, {num_targets} targets.",
    ]
    if methods is None:
        lines += ["Left out:", *(f"  {name}: {reason}" for name, reason in LEFT_OUT.items())]
    return "\n".join(lines)


def _named(name: str, methods: Mapping[str, Method]) -> Method:
    if name not in methods:
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(methods)}")
    return methods[name]


def _run(method: Method, model: ViTRegressor, call: Callable[[], Tensor]) -> Tensor:
    require_eval(model)
    with restored_state(model):
        values = call()
    if not isinstance(values, Tensor):
        raise ValueError(f"method {method.name}: expected a tensor, got a {type(values).__name__}")
    values = values.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"method {method.name}: found NaN or infinity, expected finite numbers")
    if not bool(values.any()):
        raise ValueError(f"method {method.name}: every number is zero")
    return values
