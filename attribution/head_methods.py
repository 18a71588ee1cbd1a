"""The table of head methods: what each is, where it comes from, what it costs.

A head method is a function (model, batch, settings) -> scores `[image layer head]`, positive = removing the head
raises the loss. Runs nothing (`attribution.methods` does).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from attribution.attention_scores import (
    attention_distance,
    attention_distance_of,
    cls_entropy,
    cls_entropy_of,
    max_weight,
    max_weight_of,
    value_norm,
)
from attribution.batch import MethodSettings
from attribution.controls import layer_index, parameter_norm, random_scores
from attribution.deep_lift import layer_deep_lift, layer_deep_lift_out, layer_deep_lift_with_extras
from attribution.direct_effect import direct_effect, direct_effect_ixg_out
from attribution.eap_ig import eap_ig_activations, eap_ig_activations_out, eap_ig_inputs, eap_ig_inputs_out
from attribution.frozen_rules import frozen_rules, frozen_rules_out
from attribution.gates import (
    gate_ig,
    gate_ig_out,
    gate_ig_with_extras,
    gate_ixg,
    gate_ixg_out,
    gate_ixg_out_of,
    gate_saliency,
    gate_saliency_out,
    gate_saliency_out_of,
)
from attribution.grad_drop import grad_drop, grad_drop_out
from attribution.gradient_readings import COUNTERFACTUAL, DONORS, MEAN
from attribution.gradient_shap import layer_gradient_shap, layer_gradient_shap_out
from attribution.heads import cls_mass, cls_mass_of
from attribution.layer_activation import layer_activation
from attribution.layers import (
    conductance_out,
    internal_influence,
    internal_influence_out,
    layer_conductance,
    layer_ig,
    layer_ig_out,
)
from attribution.method import Method, by_name
from attribution.patching import (
    patch_counterfactual,
    patch_counterfactual_of,
    patch_counterfactual_out,
    patch_counterfactual_out_of,
    patch_donors,
    patch_donors_of,
    patch_donors_out,
    patch_donors_out_of,
    patch_mean,
    patch_mean_of,
    patch_mean_out,
    patch_mean_out_of,
)
from attribution.rollout import attention_ixg, chefer, rollout_drop, rollout_drop_of

NUM_DONORS = 4  # costs do not know the batch: this is what a run has
IN_UNITS = "in units of the loss"

_REPLACED_BY = {MEAN: "mean", DONORS: "resample", COUNTERFACTUAL: "counterfactual"}

_unsigned = partial(Method, signed=False, direction="+")
_path = partial(Method, is_path=True)


def _patching(name: str, function: Callable[..., Tensor], of: Any, field: str, forwards: int, note: str) -> Method:
    """Attribution patching: one backward pass per output serves all of them."""
    return Method(
        name,
        function,
        "patching",
        "2403.00745",
        forwards=forwards,
        backwards=_per_target,
        note=note,
        needs=(field,),
        of_gradients=of,
        expands=_REPLACED_BY[field],
    )


def _steps(settings: MethodSettings, layers: int, targets: int) -> int:
    return settings.steps


def _steps_and_one(settings: MethodSettings, layers: int, targets: int) -> int:
    return settings.steps + 1


def _steps_per_target(settings: MethodSettings, layers: int, targets: int) -> int:
    return settings.steps * targets


def _per_target(settings: MethodSettings, layers: int, targets: int) -> int:
    return targets


def _half_the_blocks(settings: MethodSettings, layers: int, targets: int) -> int:
    """Gradients with each block dropped, in equivalents of full passes, rounded up: those below it are taken again."""
    return math.ceil((layers + 1) / 2)


def _half_the_blocks_per_target(settings: MethodSettings, layers: int, targets: int) -> int:
    return targets * _half_the_blocks(settings, layers, targets)


def _block_passes(settings: MethodSettings, layers: int) -> int:
    """In equivalents of full passes, rounded up: a pass for block l of L runs L - l blocks."""
    return math.ceil(settings.steps * (layers + 1) / 2)


METHODS: dict[str, Method] = by_name(
    _unsigned(
        "gate_saliency",
        gate_saliency,
        "gates",
        "1905.10650",
        backwards=1,
        expands="zero",
    ),
    _unsigned(
        "gate_saliency_out",
        gate_saliency_out,
        "gates",
        "1905.10650",
        backwards=_per_target,
        default=False,
        note="the quadratic part of gate_ixg_out",
        of_gradients=gate_saliency_out_of,
        expands="zero",
    ),
    Method(
        "gate_ixg",
        gate_ixg,
        "gates",
        "1605.01713",
        backwards=1,
        note="blind to what is quadratic in the effect",
        expands="zero",
    ),
    Method(
        "gate_ixg_out",
        gate_ixg_out,
        "gates",
        "1605.01713",
        backwards=_per_target,
        note=IN_UNITS,
        of_gradients=gate_ixg_out_of,
        expands="zero",
    ),
    _path(
        "gate_ig",
        gate_ig,
        "gates",
        "1703.01365",
        forwards=_steps,
        backwards=_steps,
        note="all heads leave together",
        with_extras=gate_ig_with_extras,
        expands="zero",
    ),
    _path(
        "gate_ig_out",
        gate_ig_out,
        "gates",
        "1703.01365",
        forwards=_steps_and_one,
        backwards=_steps_per_target,
        default=False,
        note=IN_UNITS,
        expands="zero",
    ),
    _path(
        "layer_conductance",
        layer_conductance,
        "layers",
        "1805.12233",
        forwards=_steps_and_one,
        backwards=_steps_and_one,
        note="one pass per node for all blocks",
    ),
    _path(
        "conductance_out",
        conductance_out,
        "layers",
        "1805.12233",
        forwards=lambda settings, layers, targets: settings.steps + 2,
        backwards=lambda settings, layers, targets: (settings.steps + 1) * targets,
        default=False,
        note=IN_UNITS,
    ),
    _path(
        "internal_influence",
        internal_influence,
        "layers",
        "1802.03788",
        forwards=_steps_and_one,
        backwards=_steps,
        default=False,
        note="one pass per node for all blocks",
    ),
    _path(
        "internal_influence_out",
        internal_influence_out,
        "layers",
        "1802.03788",
        forwards=_steps_and_one,
        backwards=_steps_per_target,
        default=False,
        note=IN_UNITS,
    ),
    _path(
        "layer_ig",
        layer_ig,
        "layers",
        "1703.01365",
        # Two more passes give what enters the blocks, and their contexts. Not counted: the one baseline picture, and
        # the one picture by which `attribution.prefix` sees that passes may start at a block.
        forwards=lambda settings, layers, targets: 2 + _block_passes(settings, layers),
        backwards=lambda settings, layers, targets: _block_passes(settings, layers),
        default=False,
        note="block by block, hence expensive",
    ),
    _path(
        "layer_ig_out",
        layer_ig_out,
        "layers",
        "1703.01365",
        forwards=lambda settings, layers, targets: 2 + _block_passes(settings, layers),
        backwards=lambda settings, layers, targets: targets * _block_passes(settings, layers),
        default=False,
        note=IN_UNITS,
    ),
    # The baseline picture, one for all, is not counted.
    Method(
        "layer_deep_lift",
        layer_deep_lift,
        "layers",
        "1704.02685",
        backwards=1,
        approximate=True,
        default=False,
        with_extras=layer_deep_lift_with_extras,
    ),
    Method(
        "layer_deep_lift_out",
        layer_deep_lift_out,
        "layers",
        "1704.02685",
        backwards=_per_target,
        approximate=True,
        default=False,
        note=IN_UNITS,
    ),
    _path(
        "layer_gradient_shap",
        layer_gradient_shap,
        "layers",
        "1906.10670",
        # The picture; for every donor its own contexts, and one place on the way from it.
        forwards=1 + 2 * NUM_DONORS,
        backwards=NUM_DONORS,
        default=False,
        needs=("donor_pixel_values",),
        expands="resample",
    ),
    _path(
        "layer_gradient_shap_out",
        layer_gradient_shap_out,
        "layers",
        "1906.10670",
        forwards=1 + 2 * NUM_DONORS,
        backwards=lambda settings, layers, targets: NUM_DONORS * targets,
        default=False,
        note=IN_UNITS,
        needs=("donor_pixel_values",),
        expands="resample",
    ),
    # The reference pictures, whose contexts are stored once for a model, are not counted.
    _patching("patch_mean", patch_mean, patch_mean_of, MEAN, 1, note="expands mean ablation"),
    _patching("patch_mean_out", patch_mean_out, patch_mean_out_of, MEAN, 1, note=IN_UNITS),
    _patching("patch_donors", patch_donors, patch_donors_of, DONORS, 1 + NUM_DONORS, note="expands resample ablation"),
    _patching("patch_donors_out", patch_donors_out, patch_donors_out_of, DONORS, 1 + NUM_DONORS, note=IN_UNITS),
    _patching(
        *("patch_counterfactual", patch_counterfactual, patch_counterfactual_of, COUNTERFACTUAL, 2),
        note="expands counterfactual ablation",
    ),
    _patching(
        *("patch_counterfactual_out", patch_counterfactual_out, patch_counterfactual_out_of, COUNTERFACTUAL, 2),
        note=IN_UNITS,
    ),
    _unsigned(
        "grad_drop",
        grad_drop,
        "patching",
        "2403.00745",
        backwards=_half_the_blocks,
        note="no effects of opposite sign cancel",
        expands="zero",
    ),
    _unsigned(
        "grad_drop_out",
        grad_drop_out,
        "patching",
        "2403.00745",
        backwards=_half_the_blocks_per_target,
        default=False,
        note=IN_UNITS,
        expands="zero",
    ),
    _path(
        "eap_ig_inputs",
        eap_ig_inputs,
        "patching",
        "2403.17806",
        forwards=lambda settings, layers, targets: settings.steps + 2,
        backwards=_steps,
        default=False,
        needs=(COUNTERFACTUAL,),
        note="expands counterfactual ablation",
        expands="counterfactual",
    ),
    _path(
        "eap_ig_inputs_out",
        eap_ig_inputs_out,
        "patching",
        "2403.17806",
        forwards=lambda settings, layers, targets: settings.steps + 2,
        backwards=_steps_per_target,
        default=False,
        needs=(COUNTERFACTUAL,),
        note=IN_UNITS,
        expands="counterfactual",
    ),
    _path(
        "eap_ig_activations",
        eap_ig_activations,
        "patching",
        "2403.17806",
        forwards=lambda settings, layers, targets: 3 + _block_passes(settings, layers),
        backwards=lambda settings, layers, targets: _block_passes(settings, layers),
        default=False,
        needs=(COUNTERFACTUAL,),
        note="block by block, hence expensive",
        expands="counterfactual",
    ),
    _path(
        "eap_ig_activations_out",
        eap_ig_activations_out,
        "patching",
        "2403.17806",
        forwards=lambda settings, layers, targets: 3 + _block_passes(settings, layers),
        backwards=lambda settings, layers, targets: targets * _block_passes(settings, layers),
        default=False,
        needs=(COUNTERFACTUAL,),
        note=IN_UNITS,
        expands="counterfactual",
    ),
    Method(
        "frozen_rules",
        frozen_rules,
        "relevance",
        "2202.07304",
        backwards=1,
        note="attention and norms held constant",
        expands="zero",
    ),
    Method(
        "frozen_rules_out",
        frozen_rules_out,
        "relevance",
        "2202.07304",
        backwards=_per_target,
        default=False,
        note=IN_UNITS,
        expands="zero",
    ),
    Method(
        "direct_effect",
        direct_effect,
        "direct",
        "2310.05916",
        note="exact; past all later blocks",
        expands="zero",
    ),
    Method(
        "direct_effect_ixg_out",
        direct_effect_ixg_out,
        "direct",
        "2310.05916",
        note="the same to first order",
        expands="zero",
    ),
    _unsigned("layer_activation", layer_activation, "layers", "2009.07896", default=False),
    _unsigned("cls_mass", cls_mass, "attention", "2104.14294", of_attention=cls_mass_of),
    Method(
        "cls_entropy",
        cls_entropy,
        "attention",
        "1906.04341",
        signed=False,
        direction="-",
        note="a narrow head counts as important",
        of_attention=cls_entropy_of,
    ),
    _unsigned("max_weight", max_weight, "attention", "1905.09418", of_attention=max_weight_of),
    _unsigned("attention_distance", attention_distance, "attention", "2010.11929", of_attention=attention_distance_of),
    _unsigned("value_norm", value_norm, "attention", "2004.10102", default=False, note="needs blocks that are known"),
    _unsigned("rollout_drop", rollout_drop, "attention", "2005.00928", of_attention=rollout_drop_of),
    _unsigned("chefer", chefer, "attention x gradient", "2103.15679", backwards=1),
    Method(
        "attention_ixg",
        attention_ixg,
        "attention x gradient",
        "1605.01713",
        backwards=1,
        default=False,
        note="coincides with gate_ixg",
        expands="zero",
    ),
    _unsigned("random", random_scores, "control", forwards=0),
    _unsigned("layer_index", layer_index, "control", forwards=0),
    _unsigned("parameter_norm", parameter_norm, "control", forwards=0),
)
