"""The table of pixel methods: what each is, where it comes from, what it costs.

A pixel method is a function (model, batch, settings, target) -> maps `[image row col]`, not negative, of the loss
(target None) or of one output. Runs nothing (`attribution.methods` does).
"""

from attribution.method import Method, by_name
from attribution.pixels import integrated_gradients, saliency
from attribution.rollout import chefer_map, rollout, rollout_of

PIXEL_METHODS: dict[str, Method] = by_name(
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
    Method(
        "rollout",
        rollout,
        "attention",
        "2005.00928",
        signed=False,
        direction="+",
        note="reads no output",
        of_attention=rollout_of,
    ),
    Method("chefer", chefer_map, "attention x gradient", "2103.15679", signed=False, direction="+", backwards=1),
)
