"""The table of head methods: what each is, where it comes from, what it costs.

A head method is a function (model, batch, settings) -> scores `[image layer head]`, positive = removing the head
raises the loss. Runs nothing (`attribution.methods` does).
"""

import math

from attribution.controls import layer_index, random_scores
from attribution.gates import gate_ig, gate_ig_out, gate_ixg, gate_ixg_out, gate_saliency
from attribution.heads import cls_mass, cls_mass_of
from attribution.layers import conductance_out, internal_influence, layer_conductance, layer_ig
from attribution.method import Method, by_name
from attribution.rollout import chefer, rollout_drop, rollout_drop_of

METHODS: dict[str, Method] = by_name(
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
        "internal_influence",
        internal_influence,
        "layers",
        "1802.03788",
        forwards=lambda settings, layers, targets: settings.steps + 1,
        backwards=lambda settings, layers, targets: settings.steps,
        default=False,
        note="times the context; one pass per node for all blocks",
    ),
    Method(
        "layer_ig",
        layer_ig,
        "layers",
        "1703.01365",
        # In equivalents of full passes, rounded up: a pass for block l of L runs L - l blocks. Two more passes give
        # what enters the blocks, and their contexts; the one baseline picture is not counted.
        forwards=lambda settings, layers, targets: 2 + math.ceil(settings.steps * (layers + 1) / 2),
        backwards=lambda settings, layers, targets: math.ceil(settings.steps * (layers + 1) / 2),
        default=False,
        note="block by block, hence expensive",
    ),
    Method("cls_mass", cls_mass, "attention", "2104.14294", signed=False, direction="+", of_attention=cls_mass_of),
    Method("chefer", chefer, "attention x gradient", "2103.15679", signed=False, direction="+", backwards=1),
    Method(
        "rollout_drop",
        rollout_drop,
        "attention",
        "2005.00928",
        signed=False,
        direction="+",
        of_attention=rollout_drop_of,
    ),
    Method("random", random_scores, "control", signed=False, direction="+", forwards=0),
    Method("layer_index", layer_index, "control", signed=False, direction="+", forwards=0),
)
