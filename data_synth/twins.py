"""Twins: a picture again with exactly one thing changed.

Takes a :class:`~data_synth.dataset.ChirpDataset`, an index and an :class:`Edit`; gives the twin's Scene or Sample. A
twin freezes everything but the edit: axes, fonts, colour limits, noise, resampling; nothing is laid out anew. Pixels
outside the old and the new box are identical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .chirp import chirp_mask, ridge, sample_params
from .dataset import ChirpDataset, Sample, Scene, render
from .figure import Layout, draw
from .layouts import SPLITS, Projection, project
from .placement import Box, Item, moved_items
from .published import PublishedFigure, published_figure
from .raster import TEXT_REGIONS
from .text import text_bitmap

EditKind = Literal["without", "move", "replace", "grey", "chirp_elsewhere"]
COLORBAR_PARTS = ("colorbar", "colorbar_ticks", "colorbar_label")
REPLACE_ATTEMPTS = 64
GREY = 128


@dataclass(frozen=True)
class Edit:
    """One change. ``region`` is a region or ``text`` (all of it); ``colorbar`` is the bar with its ticks and label."""

    kind: EditKind
    region: str = "chirp"

    def __str__(self) -> str:
        return self.kind if self.kind == "chirp_elsewhere" else f"{self.kind}({self.region})"


def without(region: str) -> Edit:
    """The picture without a region: ``chirp``, ``text``, ``colorbar`` (with ticks and label), ``frame`` (all lines and
    tick marks), ``plot_background`` (with the frame: the chirp stays, on bare paper), or one text region."""
    return Edit("without", region)


def move(region: str) -> Edit:
    """``colorbar`` to the opposite side, or ``title`` below (above, if it is below)."""
    return Edit("move", region)


def replace_text(region: str) -> Edit:
    """Other text in the same box: letters change places, digits change values."""
    return Edit("replace", region)


def grey_box(region: str) -> Edit:
    """A grey box of the same size in place of every text box."""
    return Edit("grey", region)


CHIRP_ELSEWHERE = Edit("chirp_elsewhere")


def has_region(scene: Scene, region: str) -> bool:
    """Whether a picture shows a region (or any text, for ``text``)."""
    if region == "chirp":
        return bool(scene.clean.any())
    if region == "plot_background":
        return True
    if isinstance(scene.projection, PublishedFigure):
        return region not in scene.projection.hidden
    return any(item.region in _group(region) for item in scene.projection.layout.items)


def twin_scene(dataset: ChirpDataset, index: int, edit: Edit) -> Scene:
    """The scene of picture ``index`` after one edit.

    Raises ValueError if the picture does not show the region (see :func:`has_region`), if the region cannot be edited
    that way, or if the ``published`` preset leaves no room for the edit.
    """
    scene = dataset.scene(index)
    if edit.kind == "chirp_elsewhere":
        config = dataset.config
        rng = np.random.default_rng([config.seed, SPLITS.index(dataset.split), index, 2])
        params = replace(sample_params(rng, config.preset), noise_level=scene.params.noise_level)
        return replace(scene, params=params, clean=ridge(params, config.preset))
    if not has_region(scene, edit.region):
        raise ValueError(f"{edit}: picture {index} of {dataset.split} has no {edit.region}")
    if edit == without("chirp"):
        return replace(scene, clean=np.zeros_like(scene.clean))
    if isinstance(scene.projection, PublishedFigure):
        projection: Projection | PublishedFigure = _published_twin(scene, scene.projection, edit, index)
    else:
        layout = scene.projection.layout
        items, added = edited_items(layout, edit, seed=index)
        projection = project(
            draw(layout.style, layout.axes, items + added), dataset.config.image_size, dataset.config.patch_size
        )
    twin = replace(scene, projection=projection)
    return _on_paper(twin) if edit == without("plot_background") else twin


def twin(dataset: ChirpDataset, index: int, edit: Edit) -> Sample:
    """The twin picture with its masks; see :func:`twin_scene`."""
    return render(twin_scene(dataset, index, edit), dataset.config)


def edited_items(layout: Layout, edit: Edit, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Items that stay as they are, and items that are new after the edit."""
    group = _group(edit.region)
    goes: Callable[[Item], bool] = lambda item: item.region in group  # noqa: E731
    if edit.region == "colorbar":
        goes = lambda item: item.owner == "colorbar"  # noqa: E731
    kept = tuple(item for item in layout.items if not goes(item))
    gone = tuple(item for item in layout.items if goes(item))
    if edit.kind == "without":
        return kept, ()
    if edit.kind == "move":
        return kept, moved_items(layout.style, layout.axes, edit.region)
    if edit.region != "text" and edit.region not in TEXT_REGIONS:
        raise ValueError(f"{edit}: only text can be replaced, expected text or one of {', '.join(TEXT_REGIONS)}")
    if edit.kind == "grey":
        return kept, tuple(replace(item, text=None, grey=GREY) for item in gone)
    rng = np.random.default_rng([seed, 3])
    return kept, tuple(_other_text(layout, item, rng) for item in gone)


def edited_boxes(layout: Layout, edit: Edit, seed: int) -> tuple[Box, ...]:
    """Every box whose pixels an edit of the chrome may change: where things were and where they are now."""
    kept, added = edited_items(layout, edit, seed)
    plot = (layout.axes,) if edit.region == "plot_background" else ()
    return plot + tuple(item.box for item in layout.items if item not in kept) + tuple(item.box for item in added)


def _group(region: str) -> tuple[str, ...]:
    if region == "plot_background":
        return ("frame",)  # without its lines, or they would draw the border that is to go
    return TEXT_REGIONS if region == "text" else (region,)


def _on_paper(scene: Scene) -> Scene:
    """The scene with paper where its spectrogram shows no chirp."""
    shown = chirp_mask(scene.clean)
    if isinstance(scene.projection, PublishedFigure):  # matplotlib leaves out what is not a number
        return replace(scene, noise=np.where(shown, scene.noise, np.float32(np.nan)))
    lut = scene.projection.lut.copy()
    lut[0] = scene.projection.layout.style.paper  # no value is as low as the lowest colour
    noise = np.where(shown, scene.noise, np.float32(-np.inf))
    return replace(scene, noise=noise, projection=replace(scene.projection, lut=lut))


def _other_text(layout: Layout, item: Item, rng: np.random.Generator) -> Item:
    """Other characters of the same classes whose ink fits the same box best."""
    assert item.text is not None
    height, width = item.box.row1 - item.box.row0, item.box.col1 - item.box.col0
    best, best_misfit = item, np.inf
    for _ in range(REPLACE_ATTEMPTS):
        text = _scramble(item.text, rng)
        if text == item.text:
            continue
        ink = text_bitmap(text, layout.style.font_family, item.size_pt, item.rotation_deg)
        # Ink beyond the box would be cut: that weighs more than a box not quite filled.
        over = max(ink.shape[0] - height, 0) + max(ink.shape[1] - width, 0)
        misfit = 10 * over + abs(ink.shape[0] - height) + abs(ink.shape[1] - width)
        if misfit < best_misfit:
            best, best_misfit = replace(item, text=text), misfit
        if misfit == 0:
            break
    if best is item:
        raise ValueError(f"replace: no other text found for {item.text!r}")
    return best


def _scramble(text: str, rng: np.random.Generator) -> str:
    letters = iter(rng.permutation([char for char in text if char.isalpha()]))
    return "".join(
        str(rng.integers(10)) if char.isdigit() else str(next(letters)) if char.isalpha() else char for char in text
    )


def _published_twin(scene: Scene, figure: PublishedFigure, edit: Edit, index: int) -> PublishedFigure:
    values = scene.clean + scene.noise
    if edit.kind == "without":
        hidden = frozenset(COLORBAR_PARTS if edit.region == "colorbar" else _group(edit.region))
        return published_figure(
            values, scene.params, index, title=figure.title, limits=figure.limits, hidden=figure.hidden | hidden
        )
    if edit == replace_text("title"):
        title = _scramble(figure.title, np.random.default_rng([index, 3]))
        return published_figure(values, scene.params, index, title=title, limits=figure.limits)
    raise ValueError(f"{edit}: the published figure has no room for this edit; use without(...) or replace(title)")
