"""Picture galleries: which picture, map and outline lands in which panel."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from analysis import gallery


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 42, 3), dtype=np.uint8)


@pytest.fixture
def maps():
    values = np.random.default_rng(1).gamma(0.3, size=(5, 4, 6))
    return values / values.sum(axis=(1, 2), keepdims=True)


TITLES = ["a", "b", "c", "d", "e"]


def shown(figure):
    return [ax for ax in figure.axes if ax.images]


def opacity(ax):
    return ax.images[-1].get_array()[..., 3]


def test_each_panel_shows_its_picture_under_its_map(images, maps):
    panels = shown(gallery.attention_gallery(images, maps, TITLES))
    assert [ax.get_title() for ax in panels] == TITLES
    for ax, image, one in zip(panels, images, maps, strict=True):
        grey = image.astype(float) @ [0.299, 0.587, 0.114] / 255
        assert np.allclose(ax.images[0].get_array(), 0.4 + 0.6 * grey)
        assert np.allclose(opacity(ax), 0.85 * one / one.max())
        assert np.allclose(ax.images[1].get_array()[..., :3], to_rgb(gallery.HEAT))  # a single hue
        assert ax.get_xlabel() == f"strongest cell {one.max():.1%}"


def test_the_map_covers_the_whole_picture_as_squares(images, maps):
    ax = shown(gallery.attention_gallery(images, maps, TITLES))[0]
    picture, heat = ax.images
    assert list(picture.get_extent()) == list(heat.get_extent()) == [-0.5, 41.5, 27.5, -0.5]
    assert heat.get_interpolation() == "nearest"


def test_rows_gather_their_panels_and_leave_blanks(images, maps):
    rows = ["chirp", "text", "chirp", "text", "chirp"]
    figure = gallery.attention_gallery(images, maps, TITLES, rows=rows)
    places = {ax.get_title(): (ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start)
              for ax in shown(figure)}  # fmt: skip
    assert places == {"a": (0, 0), "c": (0, 1), "e": (0, 2), "b": (1, 0), "d": (1, 1)}
    assert [ax.get_ylabel() for ax in shown(figure) if ax.get_ylabel()] == ["chirp", "text"]
    blank = [ax for ax in figure.axes if not ax.images]
    assert len(blank) == 1 and not blank[0].axison


def test_without_rows_panels_wrap(images, maps):
    figure = gallery.attention_gallery(images, maps, TITLES, columns=2)
    starts = [ax.get_subplotspec().rowspan.start for ax in shown(figure)]
    assert starts == [0, 0, 1, 1, 2]


@pytest.mark.filterwarnings("error")
def test_outlines_follow_the_mask_and_an_absent_region_has_none(images, maps):
    masks = np.zeros((5, 28, 42), dtype=bool)
    masks[0, 10:20, 5:15] = True
    masks[1] = True  # the whole picture: no edge to draw
    panels = shown(gallery.attention_gallery(images, maps, TITLES, mask_outlines=masks))
    assert [len(ax.collections) for ax in panels] == [1, 0, 0, 0, 0]
    line = np.concatenate([path.vertices for path in panels[0].collections[0].get_paths()])
    assert (line.min(axis=0) == [4.5, 9.5]).all() and (line.max(axis=0) == [14.5, 19.5]).all()


@pytest.mark.filterwarnings("error")
def test_pixel_gallery_has_a_row_per_picture_and_a_column_per_method(images, maps):
    pixels = np.random.default_rng(2).gamma(0.3, size=(5, 28, 42))
    figure = gallery.pixel_gallery(images, {"saliency": pixels, "rollout": maps}, titles=TITLES)
    grid = np.array(figure.axes).reshape(5, 3)
    assert [ax.get_title() for ax in grid[0]] == ["picture", "saliency", "rollout"]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == TITLES
    assert (grid[3, 0].images[0].get_array() == images[3]).all()
    assert np.allclose(opacity(grid[3, 1]), 0.85 * pixels[3] / pixels[3].max())
    assert np.allclose(opacity(grid[4, 2]), 0.85 * maps[4] / maps[4].max())
    figure.draw_without_rendering()


def test_a_fine_map_is_scaled_to_its_upper_quantile_unless_that_is_zero(images):
    fine = np.random.default_rng(2).gamma(0.3, size=(5, 80, 120))
    fine[1] = 0
    fine[1, 3, 4] = 2.0
    panels = np.array(gallery.pixel_gallery(images, {"saliency": fine}).axes).reshape(5, 2)[:, 1]
    assert np.allclose(opacity(panels[0]), 0.85 * np.clip(fine[0] / np.quantile(fine[0], 0.995), 0, 1))
    assert opacity(panels[1])[3, 4] == 0.85 and opacity(panels[1]).sum() == 0.85


@pytest.mark.parametrize("broken", [
    lambda i, m: gallery.attention_gallery(i.astype(float), m, TITLES),
    lambda i, m: gallery.attention_gallery(i[..., 0], m, TITLES),
    lambda i, m: gallery.attention_gallery(i[:0], m[:0], []),
    lambda i, m: gallery.attention_gallery(i, m[:3], TITLES),
    lambda i, m: gallery.attention_gallery(i, m, TITLES[:3]),
    lambda i, m: gallery.attention_gallery(i, m, TITLES, rows=["chirp"]),
    lambda i, m: gallery.attention_gallery(i, -m, TITLES),
    lambda i, m: gallery.attention_gallery(i, m * 0, TITLES),
    lambda i, m: gallery.attention_gallery(i, m * np.nan, TITLES),
    lambda i, m: gallery.attention_gallery(i, m, TITLES, mask_outlines=m > 0),
    lambda i, m: gallery.pixel_gallery(i, {}),
    lambda i, m: gallery.pixel_gallery(i, {"rollout": m[:2]}),
    lambda i, m: gallery.pixel_gallery(i, {"rollout": m}, titles=["a"]),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(images, maps, broken):
    with pytest.raises(ValueError, match="expected") as caught:
        broken(images, maps)
    assert "\n" not in str(caught.value)


def test_the_error_names_the_method_and_the_picture(images, maps):
    maps[2] = np.nan
    with pytest.raises(ValueError, match="chefer, picture 2: expected a finite"):
        gallery.pixel_gallery(images, {"chefer": maps})
