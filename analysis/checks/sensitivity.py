"""What the rankings of path methods owe to their settings: half or twice the steps, another baseline picture.

Takes the methods on trial; gives two passes for each variant of the settings, and the table of how far the scores of
a variant agree with those of the usual settings and with the truth. The costliest methods take few pictures and stand
in passes of their own (`analysis.checks.rerun`).

The usual baseline is the mean of the reference pictures; the others are a black picture, and each picture's own
counterfactual, the same picture without the thing to be read, where these are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from analysis.agreement import resampled, top_overlap
from analysis.checks.evidence import Evidence, Orders
from analysis.checks.rerun import by_cost, forwards_of, needs_of, spearman_interval
from analysis.models import OpenedModel
from analysis.passes import Pass, first_rows, method_settings, told_apart
from analysis.pictures import PictureSource
from analysis.score_files import Arrays
from analysis.scorecard import oriented
from analysis.settings import CompareSettings
from attribution.batch import Batch
from attribution.method import Method, cost
from attribution.methods import run_method
from attribution.vit import ViTRegressor, attention_modules

NAME = "check_sensitivity"
# Methods that start from the batch's baseline picture.
BASELINE_METHODS = (
    *("layer_conductance", "conductance_out", "internal_influence", "internal_influence_out"),
    *("layer_ig", "layer_ig_out", "layer_deep_lift", "layer_deep_lift_out"),
)
TOP = 10
COLUMNS = (
    *("method", "variant", "spearman_with_default", "ci_low", "ci_high"),
    *("spearman_with_truth", "spearman_with_truth_default", "top_10_kept", "n"),
)


@dataclass(frozen=True, eq=False)
class Variant:
    """Other settings: the number of steps, the batch with its baseline, and which fields of the batch that needs."""

    name: str
    steps: int
    batch: Callable[[ViTRegressor, Batch], Batch]
    methods: dict[str, Method]
    needs: tuple[str, ...] = ()


def passes(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    methods: Mapping[str, Method],
    orders: Orders,
) -> list[Pass]:
    """Up to two passes a variant, with an array float32 [image layer head] for each method."""

    def of(variant: Variant, chosen: dict[str, Method], key: str, num_pictures: int) -> Pass:
        def compute(batch: Batch, _: Sequence[str], batch_size: int) -> dict[str, Arrays]:
            dials = replace(method_settings(settings, batch_size), steps=variant.steps)
            changed = variant.batch(opened.model, batch)
            return {key: {name: run_method(name, opened.model, changed, dials).numpy() for name in chosen}}

        depends_on = {
            "seed": settings.seed,
            "steps": variant.steps,
            **told_apart(chosen),
        }
        return Pass(
            key,
            {key: depends_on},
            compute,
            forwards_of(chosen.values(), replace(method_settings(settings), steps=variant.steps), opened),
            rows=first_rows(num_pictures, source.count),
            needs=tuple(dict.fromkeys((*needs_of(chosen.values()), *variant.needs))),
        )

    found = []
    for variant in variants(opened, source, settings, methods):
        for key, (chosen, num_pictures) in by_cost(variant.methods, opened, settings, f"{NAME}_{variant.name}").items():
            found.append(of(variant, chosen, key, num_pictures))
    return found


def table(evidence: Evidence) -> pd.DataFrame:
    """One row a method and variant. Over the same n pictures: Spearman's rho over heads of the variant's mean scores
    with those of the usual settings (with its 95 % interval) and with the mean true effects, beside what the usual
    settings have there; and the share of the ten highest heads that stay among them."""
    opened, settings = evidence.opened, evidence.settings
    rows = []
    for variant in variants(opened, evidence.source, settings, evidence.methods):
        for key, (chosen, _) in by_cost(variant.methods, opened, settings, f"{NAME}_{variant.name}").items():
            arrays = evidence.read(key)
            for name, method in chosen.items():
                default, truth = evidence.scores[name], evidence.truth.delta_loss
                count = min(len(arrays[name]), len(default), len(truth))
                scores = oriented(arrays[name].astype(np.float64), method)
                here, usual, true = (
                    resampled(values[:count], evidence.indices(count)) for values in (scores, default, truth)
                )
                kept = top_overlap(here, usual, min(TOP, here.above.shape[1]))[0]
                numbers = (*spearman_interval(here, usual), spearman_interval(here, true)[0])
                rows.append((name, variant.name, *numbers, spearman_interval(usual, true)[0], kept, count))
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    place = {name: number for number, name in enumerate(evidence.methods)}
    return found.sort_values("method", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def variants(
    opened: OpenedModel, source: PictureSource, settings: CompareSettings, methods: Mapping[str, Method]
) -> list[Variant]:
    """The variants, each with the chosen methods that it says something about; those with none are left out."""
    stepped = {name: method for name, method in methods.items() if _depends_on_steps(method, opened, settings)}
    started = {name: methods[name] for name in methods if name in BASELINE_METHODS}
    steps = settings.steps
    found = [
        Variant("steps_half", max(1, steps // 2), _as_it_is, stepped),
        Variant("steps_double", 2 * steps, _as_it_is, stepped),
        Variant("baseline_black", steps, _from_black, started),
    ]
    if source.counterfactual is not None:
        needs = ("counterfactual_pixel_values",)
        found.append(Variant("baseline_counterfactual", steps, _from_counterfactual, started, needs))
    return [variant for variant in found if variant.methods]


def _depends_on_steps(method: Method, opened: OpenedModel, settings: CompareSettings) -> bool:
    if not method.is_path:
        return False
    dials, num_layers = method_settings(settings), len(attention_modules(opened.model))
    sizes = {"num_layers": num_layers, "num_targets": len(opened.model.config.target_names)}
    return cost(method, dials, **sizes) != cost(method, replace(dials, steps=2 * dials.steps), **sizes)


def _as_it_is(model: ViTRegressor, batch: Batch) -> Batch:
    return batch


def _from_black(model: ViTRegressor, batch: Batch) -> Batch:
    mean, std = (
        torch.tensor(values, dtype=torch.float64) for values in (model.config.image_mean, model.config.image_std)
    )
    black = ((0 - mean) / std).to(batch.pixel_values)
    return replace(batch, baseline_pixel_values=black[:, None, None].expand(batch.pixel_values.shape[1:]).contiguous())


def _from_counterfactual(model: ViTRegressor, batch: Batch) -> Batch:
    return replace(batch, baseline_pixel_values=batch.required("counterfactual_pixel_values"))
