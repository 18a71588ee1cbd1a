"""The figures of a run: which ones, from which tables, with which captions.

Takes the tables and arrays of a run; writes ``figures/*.png`` and ``.svg`` and gives (title, caption, PNG) in the order
of the report. Draws nothing itself (:mod:`analysis.plots`, :mod:`analysis.gallery`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import artists, gallery, method_plots, plots
from analysis.intervals import interval_over_images
from analysis.league_figures import check_figures, league_figures
from analysis.passes import PIXEL
from analysis.role_figures import role_figures
from analysis.score_files import Arrays
from analysis.scorecard import Truth, effect_column

Floats = NDArray[np.float64]
# Every figure there is: a run may replace files of these names, and only if an earlier run wrote them.
FIGURES = (
    *("ablation_effect", "head_ranking", "layer_profile", "agreement", "method_scatter"),
    *("truth_matrix", "league", "league_by_question", "cost_front"),
    *("removal_curves", "area_gaps", "circuits", "circuit_areas", "redundancy", "joint_removal", "edges", "knockout"),
    "mass_against_knockout",
    *("randomised", "sensitivity", "planted"),
    *("roles", "role_counts", "lifts_before_after", "looks_at_against_matters_by_role", "detectors_with_twins"),
    *("distraction", "iou_regions", "iou_finer_regions", "looks_at_against_matters", "attention_gallery"),
    *("pixel_localization", "pixel_gallery"),
)
GALLERY_PICTURES = 4
GALLERY_METHODS = 4
GALLERY_REGIONS = ("chirp", "text", "colorbar")


def layer_table(truth: Truth, indices: NDArray[np.integer]) -> pd.DataFrame:
    """Mean effect per layer, in % of the label variance, with its interval over pictures."""
    interval = interval_over_images(
        100 * truth.delta_loss.mean(axis=2), indices, degrees_of_freedom=truth.degrees_of_freedom
    )
    layers = np.arange(len(interval.value))
    return pd.DataFrame({"layer": layers, "mean": interval.value, "ci_low": interval.low, "ci_high": interval.high})


def write_figures(
    folder: Path,
    *,
    tables: Mapping[str, pd.DataFrame],
    layers: pd.DataFrame,
    images: NDArray[np.uint8],
    maps: Floats,
    pixel_maps: Mapping[str, Floats],
    masks: Mapping[str, NDArray[np.float32]] | None,
    twins_shown: Arrays | None = None,
    note: str,
) -> list[tuple[str, str, Path]]:
    """Write every figure the run has the tables for. ``maps`` are CLS maps [image layer head row col]; ``note`` ends
    every caption (number of pictures, and whether they are only indicative); ``twins_shown``, some pictures with their
    twins."""
    scorecard, agreement = tables["head_scorecard"], tables.get("agreement")
    localization, pixel_localization = tables.get("localization"), tables.get("pixel_localization")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, str, Path]] = []

    def add(name: str, title: str, caption: str, figure: Figure, with_note: bool = True) -> None:
        if name not in FIGURES:
            raise ValueError(f"figure {name}: not among FIGURES, which say what a run may write")
        png, _ = artists.save_figure(figure, folder / name)
        plt.close(figure)
        made.append((title, f"{caption} {note}" if with_note else caption, png))

    def one(draw: object, size: tuple[float, float], **kwargs: object) -> Figure:
        figure = Figure(figsize=size, layout="constrained")
        draw(ax=figure.add_subplot(), **kwargs)  # type: ignore[operator]
        return figure

    num_layers, num_heads = (int(scorecard[name].max()) + 1 for name in ("layer", "head"))
    effect = effect_column(scorecard)
    truth = effect.removesuffix("_var_pct")
    trimmed = f"{effect}_trimmed" in scorecard
    add(
        "ablation_effect",
        "What removing each head does",
        "Change of the loss when one head is set to zero, in % of the label variance; positive: the head helps. A dot "
        "marks heads whose 95 % interval excludes 0.",
        one(
            lambda ax: plots.effect_heatmap(scorecard, ax=ax, effect=effect),
            (1.6 + 0.75 * num_heads, 1.4 + 0.42 * num_layers),
        ),
    )
    add(
        "head_ranking",
        "Ranking of the heads",
        "Heads by mean effect with 95 % intervals"
        + (", and 10 % trimmed means: the two differ where a few pictures own the mean." if trimmed else "."),
        plots.head_ranking(scorecard, effect=effect),
    )
    add(
        "layer_profile",
        "Effect by layer",
        "Mean effect of setting a head of each layer to zero, in % of the label variance, with 95 % intervals.",
        one(lambda ax: plots.layer_profile(layers, ax=ax, label=f"mean {artists.effect_label(effect)}"), (7.0, 4.2)),
    )
    methods = tables["methods"]
    controls = methods["method"][methods["family"] == "control"]
    if agreement is not None:
        add(
            "agreement",
            "Which method finds the heads that matter",
            "Rank correlation of each method's scores with the ablation effects of other pictures (method on one "
            "half, truth on the other), with 95 % interval, bounded by the truth's own noise (ceiling); best first. "
            "Circles: of the same pictures.",
            method_plots.agreement_bars(agreement, truth=truth),
        )
        add(
            "method_scatter",
            "Methods against ablation, head by head",
            "Score of each method against the effect of removing the head. Scores are turned so that larger means "
            "that the head matters more; ρ is of the same pictures for both, which for some methods are the first ones "
            "alone.",
            method_plots.method_scatter(scorecard, agreement, effect=effect, truth=truth),
        )
    for name, title, caption, figure in league_figures(tables):
        add(name, title, caption, figure)
    for name, title, caption, figure in check_figures(tables):
        add(name, title, caption, figure, with_note=False)
    for name, title, caption, figure in role_figures(tables, twins_shown):
        add(name, title, caption, figure, with_note=False)
    if localization is not None and scorecard["iou_chirp"].notna().any():
        cls = localization[localization["query"] == "cls"]
        add(
            "iou_regions",
            "Where each head looks",
            "Area-matched IoU of the CLS query's attention with each region, adjusted for chance: 0 = chance.",
            plots.iou_heatmaps(cls),
        )
        finer = [name for name in dict.fromkeys(cls["region"]) if name not in ("chirp", "text", "colorbar")]
        add(
            "iou_finer_regions",
            "Where each head looks: finer regions",
            "The same for single text regions, frame, background and margin.",
            plots.iou_heatmaps(cls, regions=finer),
        )
        add(
            "looks_at_against_matters",
            "Looking at the chirp against mattering",
            "Adjusted IoU of the CLS query with the chirp against the effect of removing the head; dashed: medians "
            "over heads, to read by.",
            one(lambda ax: plots.quadrant(scorecard, ax=ax, effect=effect), (7.5, 5.5)),
        )
        add(
            "attention_gallery",
            "The heads that look at each region most",
            "CLS attention over pictures that contain the region, for the heads with the highest adjusted IoU (in "
            "brackets: its mean over all pictures, not that of the one shown).",
            _attention_gallery(scorecard, images, maps, masks),
        )
    if pixel_localization is not None and pixel_maps:
        add(
            "pixel_localization",
            "Pixel methods against the chirp",
            "Pixel IoU with the chirp, beside chance and the ceiling of any map made of patches; controls are grey.",
            artists.figure_of(method_plots.pixel_localization_bars(pixel_localization, controls=controls)),
        )
    if pixel_maps:
        shown = slice(0, min(GALLERY_PICTURES, len(images)))
        names = _shown_methods(pixel_maps, methods, pixel_localization)
        add(
            "pixel_gallery",
            "Pixel methods on the first pictures",
            "What pixel methods mark for the loss, summed over patches; of many, those that overlap the chirp best.",
            _pixel_gallery(images[shown], {name: pixel_maps[name][shown] for name in names}, masks, shown),
        )
    return made


def _shown_methods(
    pixel_maps: Mapping[str, Floats], methods: pd.DataFrame, pixel_localization: pd.DataFrame | None
) -> list[str]:
    """Pixel methods that fit beside each other: all of them, or without controls the best by IoU with the chirp."""
    if len(pixel_maps) <= GALLERY_METHODS:
        return list(pixel_maps)
    controls = set(methods["method"][methods["family"] == "control"])
    names = [name for name in pixel_maps if PIXEL + name not in controls]
    if pixel_localization is not None:
        rows = pixel_localization[(pixel_localization["metric"] == "iou") & (pixel_localization["region"] == "chirp")]
        overlap = rows.set_index("method")["value"].fillna(0.0)
        names = sorted(names, key=lambda name: -float(overlap[PIXEL + name]))
    return names[:GALLERY_METHODS]


def _pixel_gallery(
    images: NDArray[np.uint8],
    pixel_maps: Mapping[str, Floats],
    masks: Mapping[str, NDArray[np.float32]] | None,
    shown: slice,
) -> Figure:
    """Pixel maps of the first pictures, with the chirp outlined where it is known."""
    outlines = None if masks is None else masks["chirp"][shown]
    return gallery.pixel_gallery(images, pixel_maps, mask_outlines=outlines)


def _attention_gallery(
    scorecard: pd.DataFrame,
    images: NDArray[np.uint8],
    maps: Floats,
    masks: Mapping[str, NDArray[np.float32]] | None,
) -> Figure:
    """The best head of each region on up to four pictures that contain it."""
    panels, overlays, titles, rows, outlines = [], [], [], [], []
    for region in GALLERY_REGIONS:
        column = f"iou_{region}_adjusted"
        ranked = scorecard.dropna(subset=[column]).sort_values(column, ascending=False, kind="stable")
        present = list(range(len(images)))
        if masks is not None:
            present = np.flatnonzero(masks[region].any(axis=(1, 2))).tolist()
        shown = min(GALLERY_PICTURES, len(ranked), len(present))  # few pictures may contain the region
        for (_, head), picture in zip(ranked.head(shown).iterrows(), present[:shown], strict=True):
            layer, number = int(head["layer"]), int(head["head"])
            panels.append(images[picture])
            overlays.append(maps[picture, layer, number])
            titles.append(f"L{layer}H{number} (mean {head[column]:.2f})")
            rows.append(region)
            if masks is not None:
                outlines.append(masks[region][picture])
    return gallery.attention_gallery(
        np.stack(panels),
        np.stack(overlays),
        titles,
        rows=rows,
        mask_outlines=np.stack(outlines) if outlines else None,
    )
