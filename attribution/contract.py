"""What every head method promises, as one check that third-party methods can be put through as well.

Takes a function (model, batch, settings) -> scores; gives nothing, or one `AssertionError` that lists every broken
promise. Builds its own tiny float64 model unless given a factory. Does not know the methods of this package.

The promises: scores `[image layer head]`, floating, finite, not all zero; the same when run again, whether or not
gradients are enabled around the call; a picture's scores do not depend on its place in the batch or on the other
pictures; model, batch and random state are left as found, also when the model raises; rotating the basis of a head,
which changes no output, changes no score.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.backbone import tiny_backbone
from attribution.batch import Batch, MethodSettings
from attribution.contexts import contexts
from attribution.state import model_state
from attribution.vit import RegressorConfig, ViTRegressor, attention_modules, num_heads_of, output_projections

HeadMethod = Callable[[ViTRegressor, Batch, MethodSettings], Tensor]


def check_method(
    function: HeadMethod,
    model_factory: Callable[[], ViTRegressor] | None = None,
    *,
    settings: MethodSettings | None = None,
    tolerance: float = 1e-9,
) -> None:
    """Raise `AssertionError` listing every promise the head method breaks (see the module's docstring).

    `model_factory` gives a fresh model in eval mode, float64 and tiny for the tolerance and the time to make sense.
    `tolerance` bounds differences relative to the largest score (1e-5 suits transformers' ViT: its softmax is float32).
    """
    model = tiny_regressor() if model_factory is None else model_factory()
    settings = MethodSettings(steps=3, internal_batch_size=4) if settings is None else settings
    batch = _with_mean_context(model, _batch_for(model))
    rotated = rotate_head_bases(model, seed=0)
    turned = _with_mean_context(rotated, batch)
    with torch.no_grad():
        if _far(rotated(batch.pixel_values), model(batch.pixel_values), tolerance):
            raise ValueError("the model itself changes when the bases of its heads are rotated: it cannot be checked")
    untouched, given = copy.deepcopy(model), copy.deepcopy(batch)
    order = [3, 0, 4, 2, 1]

    def far(model: ViTRegressor, batch: Batch, rows: list[int]) -> bool:
        return _far(function(model, batch.select(rows), settings), scores[rows], tolerance)

    def other() -> bool:
        return not torch.equal(function(model, batch, settings), scores)

    def other_without_grad() -> bool:
        with torch.no_grad():
            return other()

    try:
        scores = function(model, batch, settings)
    except Exception as error:
        raise AssertionError(f"broken promises: runs ({_words(error)})") from error
    broken = _broken_form(scores, model, batch)
    promises: list[tuple[str, Callable[[], bool]]] = [
        ("deterministic: a second run gives the same", other),
        ("deterministic: torch.no_grad() around the call changes nothing", other_without_grad),
        ("order: a picture's scores do not depend on its place in the batch", lambda: far(model, batch, order)),
        ("picture by picture: the other pictures change nothing", lambda: far(model, batch, [2])),
        (
            "gauge: rotating the bases of the heads changes nothing",
            lambda: far(rotated, turned, list(range(len(batch)))),
        ),
    ]
    for promise, is_broken in promises if not broken else []:
        try:
            if is_broken():
                broken.append(promise)
        except Exception as error:
            broken.append(f"{promise} ({_words(error)})")
    broken += _broken_state(function, untouched, given, settings)
    if broken:
        raise AssertionError("broken promises: " + "; ".join(broken))


def rotate_head_bases(model: ViTRegressor, seed: int) -> ViTRegressor:
    """A copy of the model with each head's basis rotated at random: W_v ← QᵀW_v (bias too), W_o ← W_oQ.

    Every output stays, and so must every head score. Handles LoRA on the value projection, and fused qkv projections.
    """
    rotated = copy.deepcopy(model)
    rng = np.random.default_rng(seed)
    modules: list[Any] = list(attention_modules(rotated))
    with torch.no_grad():
        for attention, projection in zip(modules, output_projections(rotated), strict=True):
            num_heads, width = num_heads_of(attention), projection.in_features
            blocks = [np.linalg.qr(rng.standard_normal((width // num_heads,) * 2))[0] for _ in range(num_heads)]
            rotation = torch.block_diag(*map(torch.from_numpy, blocks)).to(projection.weight)
            projection.weight.copy_(projection.weight @ rotation)
            for rows in _value_rows(attention, width):
                rows.copy_(rotation.T @ rows)
    return rotated


def _value_rows(attention: Any, width: int) -> Iterator[Tensor]:
    """Everything whose rows are the channels of the values: weights, biases, LoRA's B."""
    fused = hasattr(attention, "qkv")
    projection = attention.qkv if fused else attention.v_proj
    rows = slice(2 * width, 3 * width) if fused else slice(None)
    if len(getattr(projection, "lora_magnitude_vector", ())):
        raise ValueError("a value projection under DoRA cannot be rotated")
    for linear in (
        getattr(projection, "base_layer", projection),
        *getattr(projection, "lora_B", {}).values(),
    ):
        yield linear.weight[rows]
        if linear.bias is not None:
            yield linear.bias[rows]


def tiny_regressor(seed: int = 0) -> ViTRegressor:
    """Three layers of two heads over 3 x 3 patches, float64, eager attention; every weight and bias drawn at random.

    DINOv2, because transformers' ViT takes its softmax in float32 whatever the dtype of the model.
    """
    backbone = tiny_backbone("dinov2", seed, image_size=12, patch_size=4, num_layers=3, num_heads=2, hidden_size=12)
    config = RegressorConfig(("first", "second"), ("s", "Hz"), (1.0, 50.0), (0.5, 20.0), image_size=12)
    with torch.random.fork_rng():
        model = ViTRegressor(backbone, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval().requires_grad_(False)


def _batch_for(model: ViTRegressor) -> Batch:
    rng, size = np.random.default_rng(0), model.config.image_size

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).to(model.device, model.dtype)

    return Batch(
        draw(5, 3, size, size),
        draw(5, len(model.config.target_names)),
        torch.arange(40, 45),
        draw(3, size, size),
        draw(5, 4, 3, size, size),
        draw(5, 3, size, size),
    )


def _with_mean_context(model: ViTRegressor, batch: Batch) -> Batch:
    """The mean context is the model's own: it turns with the bases of its heads."""
    others = batch.required("donor_pixel_values").flatten(0, 1)
    return replace(batch, mean_context=contexts(model, others).mean(0))


def _broken_form(scores: Any, model: ViTRegressor, batch: Batch) -> list[str]:
    if not isinstance(scores, Tensor):
        return [f"shape (expected a tensor, got a {type(scores).__name__})"]
    modules = attention_modules(model)
    expected = [len(batch), len(modules), num_heads_of(modules[0])]
    if list(scores.shape) != expected:
        return [f"shape (expected [image layer head] = {expected}, got {list(scores.shape)})"]
    if scores.dtype not in (torch.float32, torch.float64):
        return [f"dtype (expected float32 or float64, got {scores.dtype})"]
    if scores.requires_grad:
        return ["detached (the scores carry a graph)"]
    if not bool(torch.isfinite(scores).all()):
        return ["finite (found NaN or infinity)"]
    return [] if bool(scores.any()) else ["not all zero"]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _far(scores: Tensor, expected: Tensor, tolerance: float) -> bool:
    if scores.shape != expected.shape:
        return True
    return not float((scores - expected).abs().max()) <= tolerance * float(expected.abs().max())


def _broken_state(function: HeadMethod, model: ViTRegressor, batch: Batch, settings: MethodSettings) -> list[str]:
    """What a run leaves changed, on a fresh copy each: undisturbed, and with the model raising in its first passes."""
    broken: list[str] = []
    known: set[str] = set()
    for call in (0, 1, 2):  # 0: the model never raises
        copied, given = copy.deepcopy(model), copy.deepcopy(batch)
        copied.head.register_forward_pre_hook(_raise_in(call))
        weights, before = copy.deepcopy(copied.state_dict()), model_state(copied)
        failure = ""
        try:
            function(copied, given, settings)
        except _Interrupted:
            pass  # what counts is the state it leaves
        except Exception as error:
            failure = "" if call else f"state restored ({_words(error)})"
        found = before.differences(model_state(copied))
        if any(not torch.equal(weights[name], value) for name, value in copied.state_dict().items()):
            found.append("values of the weights")
        if any(
            value is not None and not torch.equal(value, getattr(given, name)) for name, value in vars(batch).items()
        ):
            found.append("the batch")
        when = f" after an error in pass {call} of the model" if call else ""
        if set(found) - known:
            broken.append(f"state restored{when} ({', '.join(found)} changed)")
        elif failure:
            broken.append(failure)
        known |= set(found)
    return broken


def _raise_in(call: int) -> Callable[[nn.Module, Any], None]:
    calls = itertools.count(1)

    def hook(_: nn.Module, __: Any) -> None:
        if next(calls) == call:
            raise _Interrupted

    return hook


class _Interrupted(Exception):
    """Raised inside the model to see what a method leaves behind."""
