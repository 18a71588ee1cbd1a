import numpy as np
import pytest

from data_synth.figure import draw
from data_synth.layouts import grid_cols, grid_rows, make_layout
from data_synth.placement import place_items
from data_synth.raster import REGION_INDEX, TEXT_REGIONS
from data_synth.text import text_bitmap

LAYOUTS = [make_layout(0, "train", index) for index in range(40)]


@pytest.mark.parametrize("index", range(40))
def test_leaving_an_item_out_changes_its_own_box_alone(index):
    layout = LAYOUTS[index]
    for item in layout.items:
        rest = tuple(other for other in layout.items if other is not item)
        changed = (draw(layout.style, layout.axes, rest).canvas != layout.canvas).any(axis=-1)
        rows, cols = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = item.box
        if item.text is not None:
            # The ink's bounding box equals the text box, up to the palest pixel of its edge.
            assert abs(rows[0] - box.row0) <= 1 and abs(rows[-1] + 1 - box.row1) <= 1
            assert abs(cols[0] - box.col0) <= 1 and abs(cols[-1] + 1 - box.col1) <= 1
        outside = changed.copy()
        outside[box.slices] = False
        assert not outside.any()


def test_label_map_says_what_is_drawn():
    for layout in LAYOUTS:
        drawn = {item.region for item in layout.items}
        labelled = {name for name, index in REGION_INDEX.items() if (layout.label_map == index).any()}
        assert labelled == drawn | {"plot_background", "margin"}
        for item in layout.items:
            if item.text is not None:
                assert (layout.label_map[item.box.slices] <= REGION_INDEX[item.region]).all()
        assert (layout.canvas[layout.axes.slices] == 0).all()
        assert (layout.label_map[layout.axes.slices] == REGION_INDEX["plot_background"]).all()


def test_texts_do_not_touch_and_stay_on_the_canvas():
    for layout in LAYOUTS:
        taken = np.zeros(layout.label_map.shape, dtype=int)
        for item in layout.items:
            assert item.box.inside_canvas()
            if item.text is not None:
                taken[item.box.slices] += 1
        assert taken.max() <= 1


def test_ticks_stand_where_their_values_are():
    for layout in LAYOUTS:
        axes = layout.axes
        for item in layout.items:
            if item.region == "x_ticks":
                centre = (item.box.col0 + item.box.col1) / 2
                value = (centre - axes.col0) / (axes.col1 - axes.col0) * 60
                assert value == pytest.approx(int(item.text), abs=0.3)
            if item.region == "y_ticks":
                centre = (item.box.row0 + item.box.row1) / 2
                value = (axes.row1 - centre) / (axes.row1 - axes.row0) * 100
                assert value == pytest.approx(int(item.text), abs=0.6)


def test_shares_of_bare_and_moved_layouts():
    styles = [make_layout(1, "train", index) for index in range(300)]
    bare = np.mean([not layout.items for layout in styles])
    sides = np.mean(
        [
            bool(layout.items)
            and (layout.style.x_side, layout.style.y_side, layout.style.title_side) != ("bottom", "left", "top")
            for layout in styles
        ]
    )
    assert 0.06 < bare < 0.15 and 0.06 < sides < 0.15
    assert {layout.style.colorbar_side for layout in styles} == {"left", "right", "top", "bottom", None}


def test_grid_is_nearest_neighbour_with_zero_hz_at_the_bottom():
    axes = LAYOUTS[0].axes
    rows, cols = grid_rows(axes), grid_cols(axes)
    assert rows[0] == 127 and rows[-1] == 0 and cols[0] == 0 and cols[-1] == 127
    height = axes.row1 - axes.row0
    np.testing.assert_array_equal(rows, 127 - np.floor((np.arange(height) + 0.5) * 128 / height).astype(int))


def test_placement_is_deterministic():
    layout = LAYOUTS[3]
    assert place_items(layout.style, layout.axes) == layout.items


def test_text_bitmap_is_tight_and_refuses_blanks():
    ink = text_bitmap("Frequency (Hz)", "DejaVu Sans", 10.0, 90)
    assert ink.shape[0] > ink.shape[1]
    assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
    with pytest.raises(ValueError, match="no ink"):
        text_bitmap(" ", "DejaVu Sans", 10.0)


def test_every_text_region_occurs():
    assert set(TEXT_REGIONS) <= {item.region for layout in LAYOUTS for item in layout.items}
