"""What methods at the heads' contexts have in common: contexts, the outputs' gradients at them, and other contexts.

Takes a model in eval mode and a batch; gives :class:`GradientReadings` of a few pictures at a time: one forward pass,
one backward pass per output, and a forward pass for every picture that lends its contexts. Methods that need nothing
else (those with `of_gradients`) share them. Knows no method and no loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.batch import Batch, MethodSettings
from attribution.blocks import TakenApart, parts_of
from attribution.contributions import (
    PICTURES_PER_PASS,
    contexts_in_graph,
    contexts_of_parts,
    require_dtype,
    summed_per_head,
)
from attribution.layer_gradients import each_output, gradients_of
from attribution.vit import ViTRegressor, attention_modules, num_heads_of, require_eval

MEAN, DONORS, COUNTERFACTUAL = "mean_context", "donor_pixel_values", "counterfactual_pixel_values"


@dataclass(frozen=True, eq=False)
class GradientReadings:
    """What one forward pass and one backward pass per output give of some pictures.

    `predictions` and `labels` [image target]; per layer `contexts` [image token head*head_dim] and `gradients` [target
    image token head*head_dim] of each output at them, where tokens may be those alone that the outputs depend on;
    `replacements`, by the field of the batch they come from, contexts [image layer][...] of the same form, several
    where there are several donors.
    """

    predictions: Tensor
    labels: Tensor
    contexts: list[Tensor]
    gradients: list[Tensor]
    num_heads: int
    replacements: dict[str, list[list[Tensor]]]

    def removed(self, replacement: list[Tensor] | None = None) -> Tensor:
        """a `[image target layer head]`: what leaves each output, to first order, when contexts become others (0)."""
        layers = []
        for layer, (context, gradient) in enumerate(zip(self.contexts, self.gradients, strict=True)):
            moved = context if replacement is None else context - replacement[layer][:, : context.shape[1]]
            layers.append(summed_per_head(moved * gradient, self.num_heads))
        return torch.stack(layers, dim=2).transpose(0, 1)


def read_gradients(
    model: ViTRegressor,
    batch: Batch,
    settings: MethodSettings,
    replacements: tuple[str, ...] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[GradientReadings]:
    """Some pictures at a time, at most 8 or fewer by the settings; `replacements` name fields of the batch.

    `dtype` torch.bfloat16 runs matrix products in it, where that is good enough; what is given is in the model's dtype.
    Raises `ValueError` for another dtype or a float64 model in bfloat16, for a model in train mode, a field that the
    batch does not have, no donors, and a mean context of another form than the model's.
    """
    require_eval(model)
    require_dtype(model, dtype)
    given = {name: batch.required(name) for name in replacements}
    if DONORS in given and given[DONORS].shape[1] == 0:
        raise ValueError(f"{DONORS}: expected at least one donor per picture, got none")
    num_heads = num_heads_of(attention_modules(model)[0])
    with torch.autocast(model.device.type, enabled=False):
        parts = parts_of(model, batch.pixel_values[:1])
        for part in batch.chunks(min(settings.internal_batch_size, PICTURES_PER_PASS)):
            with torch.enable_grad():
                outputs, contexts = _passed(model, parts, part.pixel_values, dtype)
                gradients = gradients_of(each_output(outputs), contexts)
            yield GradientReadings(
                outputs.detach().to(model.dtype),
                part.labels,
                [context.detach().to(model.dtype) for context in contexts],
                [gradient.to(model.dtype) for gradient in gradients],
                num_heads,
                {name: _replacements(model, parts, part, name, dtype) for name in replacements},
            )


def _passed(
    model: ViTRegressor, parts: TakenApart | None, pixel_values: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and contexts by layer; of the last one those of the first token alone where the blocks are known."""
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
        return contexts_in_graph(model, pixel_values) if parts is None else contexts_of_parts(parts, pixel_values)


def _replacements(
    model: ViTRegressor, parts: TakenApart | None, batch: Batch, name: str, dtype: torch.dtype | None
) -> list[list[Tensor]]:
    values = batch.required(name)
    if name == MEAN:
        layers = values.to(batch.pixel_values).flatten(2)  # [layer token head*head_dim]
        num_layers, width = len(attention_modules(model)), layers.shape[-1]
        if len(layers) != num_layers:
            raise ValueError(f"{MEAN}: expected {num_layers} layers, got {len(layers)} (of width {width})")
        return [[layer[None] for layer in layers]]
    pictures = values.unbind(1) if name == DONORS else [values]
    found = []
    for others in pictures:
        with torch.no_grad():
            contexts = _passed(model, parts, others, dtype)[1]
            found.append([context.detach().to(model.dtype) for context in contexts])
    return found
