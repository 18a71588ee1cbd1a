"""Pixel methods for the loss and for each output: does a map look elsewhere when another number is to be explained?

Takes the pixel methods of a run; gives one pass a method, which maps the loss and every output of the first pictures
from shared passes, and the table of where these maps look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.checks.evidence import Evidence, Orders
from analysis.models import OpenedModel
from analysis.passes import (
    BACKWARD_COST,
    PIXEL,
    Pass,
    chosen_methods,
    first_rows,
    method_settings,
    patch_maps,
    told_apart,
)
from analysis.pictures import PIXEL_REGIONS, PictureSource
from analysis.pixel_localization import COLUMNS, pixel_localization_table
from analysis.score_files import Arrays
from analysis.settings import CompareSettings
from attribution.all_scalars import maps_of_all_scalars
from attribution.batch import Batch
from attribution.method import Method, cost
from attribution.methods import PIXEL_METHODS
from attribution.pixels import uniform_where_empty
from attribution.vit import head_layout

LOSS = "loss"


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """One pass a pixel method, ``maps`` float16 [image scalar row col] on the patch grid; none without masks.

    Methods that read no output are left out: their maps are the same whatever is explained. A map that is zero
    everywhere counts as uniform: it prefers no place.
    """
    if not _has_masks(source):
        return []
    dials, layout = method_settings(settings), head_layout(opened.model)
    num_targets = len(opened.model.config.target_names)

    def of(name: str, method: Method) -> Pass:
        def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
            maps = maps_of_all_scalars(name, opened.model, batch, method_settings(settings, batch_size))
            found = [patch_maps(name, uniform_where_empty(scalar), batch, layout) for scalar in maps]
            return {_key(name): {"maps": np.stack(found, axis=1)}}

        forwards, backwards = cost(method, dials, num_layers=layout.num_layers, num_targets=num_targets)
        depends_on = {
            "pixel_steps": dials.pixel_steps,
            "noise_samples": dials.noise_samples,
            "seed": dials.seed,
            **told_apart({name: method}),
        }
        return Pass(
            _key(name),
            {_key(name): depends_on},
            compute,
            forwards + BACKWARD_COST * backwards * (1 + num_targets),
            rows=first_rows(settings.check_pictures, source.count),
            needs=method.needs,
        )

    return [of(name, method) for name, method in _methods(settings).items()]


def table(evidence: Evidence) -> pd.DataFrame:
    """As ``pixel_localization``, with a column for what is explained: the loss or a target."""
    if not _has_masks(evidence.source) or not _methods(evidence.settings):
        return pd.DataFrame(columns=["method", "explains", *COLUMNS[1:]])
    scalars = (LOSS, *evidence.opened.model.config.target_names)
    maps = {name: evidence.read(_key(name))["maps"].astype(np.float64) for name in _methods(evidence.settings)}
    count = len(next(iter(maps.values())))
    masks = evidence.source.draw(range(count)).masks
    assert masks is not None
    coverage = np.stack([masks[name] for name in PIXEL_REGIONS], axis=1)
    layout = head_layout(evidence.opened.model)
    parts = []
    for place, scalar in enumerate(scalars):
        found = pixel_localization_table(
            {PIXEL + name: values[:, place] for name, values in maps.items()},
            coverage,
            {name: (number,) for number, name in enumerate(PIXEL_REGIONS)},
            evidence.indices(count),
            grid=(layout.num_rows, layout.num_cols),
        )
        found.insert(1, "explains", scalar)
        parts.append(found)
    order = {PIXEL + name: place for place, name in enumerate(maps)}
    joined = pd.concat(parts, ignore_index=True)
    return joined.sort_values("method", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _methods(settings: CompareSettings) -> dict[str, Method]:
    chosen = chosen_methods(settings.methods, PIXEL_METHODS)
    return {
        name: method for name, method in chosen.items() if method.of_attention is None and method.family != "control"
    }


def _has_masks(source: PictureSource) -> bool:
    return source.draw(range(1)).masks is not None


def _key(name: str) -> str:
    return f"check_pixel_targets_{name}"
