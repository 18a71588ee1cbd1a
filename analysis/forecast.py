"""How long a run will take, told beforehand; and the plain forward pass that is the unit of every price.

Takes passes with their costs and the measured seconds of one forward pass; gives a text table. Computes nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from analysis.models import OpenedModel
from analysis.out_of_memory import BatchSize, compute_fitting
from analysis.passes import Pass
from analysis.pictures import Pictures
from analysis.score_files import Arrays
from attribution.batch import Batch


def forward_seconds(opened: OpenedModel, pictures: Pictures) -> float:
    """Seconds of one forward pass of one picture, measured on a few pictures."""
    model = opened.model
    pixel_values = model.preprocess(pictures.images[: min(16, len(pictures.images))]).to(model.device, model.dtype)
    with torch.inference_mode():
        model(pixel_values[:2])
        start = time.perf_counter()
        float(model(pixel_values).sum())  # a number on the host: the device has finished
    return (time.perf_counter() - start) / len(pixel_values)


def plain_forward_seconds(opened: OpenedModel, batch: Batch, size: BatchSize) -> float:
    """Seconds of a plain forward pass of all pictures of a batch, in passes as large as those of the methods; what a
    method took on the same pictures, over this, is its price in forward passes as measured."""

    def plain(part: Batch, _: int) -> dict[str, Arrays]:
        with torch.inference_mode():
            return {"forward": {"predictions": opened.model(part.pixel_values).float().cpu().numpy()}}

    while True:
        pictures, start = size.pictures, time.perf_counter()
        compute_fitting(plain, batch, size, "forward")
        if size.pictures == pictures:  # else a pass that failed is in the time
            return time.perf_counter() - start


def total_forwards(passes: Sequence[Pass], num_pictures: int) -> float:
    """Forward passes of one picture, of all passes over their pictures together."""
    return sum(one.forwards * (num_pictures if one.rows is None else len(one.rows)) for one in passes)


def forecast(passes: Sequence[Pass], seconds_per_forward: float, num_pictures: int) -> str:
    """A table of what will be computed and how long it is expected to take; what shares a pass is named below it."""
    lines = [f"{'pass':24s} {'forward passes each':>19s} {'seconds':>8s}"]
    for one in passes:
        seconds = total_forwards([one], num_pictures) * seconds_per_forward
        of = "" if one.rows is None else f"  of {len(one.rows)} pictures"
        lines.append(f"{one.name:24s} {one.forwards:19.1f} {seconds:8.0f}{of}")
        lines += [f"  and {name}" for name in one.depends_on if name != one.name]
    total = total_forwards(passes, num_pictures)
    lines.append(f"{'total':24s} {total / num_pictures:19.1f} {total * seconds_per_forward:8.0f}")
    return "\n".join(lines)
