import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from data_synth import ChirpDataset, SynthConfig
from data_synth.dataset import label_map
from data_synth.raster import REGION_INDEX, TEXT_REGIONS
from data_synth.twins import (
    CHIRP_ELSEWHERE,
    edited_boxes,
    grey_box,
    has_region,
    move,
    replace_text,
    twin,
    twin_scene,
    without,
)

DATASET = ChirpDataset("test", 40)
CHROME_EDITS = [
    *(without(region) for region in (*TEXT_REGIONS, "text", "colorbar", "frame", "plot_background")),
    move("colorbar"),
    move("title"),
    replace_text("text"),
    grey_box("text"),
]


def outside_mask(boxes, dilation_px=3):
    """Picture pixels that no edited box touches, after dilating the boxes on the 480 x 640 canvas."""
    outside = np.ones((224, 224), dtype=bool)
    for box in boxes:
        row0, row1 = (box.row0 - dilation_px) * 224 // 480, -((-(box.row1 + dilation_px) * 224) // 480)
        col0, col1 = (box.col0 - dilation_px) * 224 // 640, -((-(box.col1 + dilation_px) * 224) // 640)
        outside[max(row0, 0) : row1, max(col0, 0) : col1] = False
    return outside


@pytest.mark.parametrize("edit", CHROME_EDITS, ids=str)
def test_pixels_outside_the_edit_are_identical(edit):
    checked = 0
    for index in range(40):
        scene = DATASET.scene(index)
        if not has_region(scene, edit.region):
            continue
        original, changed = DATASET[index], twin(DATASET, index, edit)
        boxes = edited_boxes(scene.projection.layout, edit, seed=index)
        outside = outside_mask(boxes)
        np.testing.assert_array_equal(original.image[outside], changed.image[outside])
        assert (original.image != changed.image).any()
        np.testing.assert_array_equal(original.labels, changed.labels)
        np.testing.assert_array_equal(original.coverage[0], changed.coverage[0])
        checked += 1
    assert checked >= 5


def test_without_takes_the_region_out_of_the_masks():
    for index in range(10):
        for region in ("text", "colorbar"):
            if has_region(DATASET.scene(index), region):
                sample = twin(DATASET, index, without(region))
                gone = TEXT_REGIONS if region == "text" else ("colorbar", "colorbar_ticks", "colorbar_label")
                assert not sample.coverage[[REGION_INDEX[name] for name in gone]].any()
                np.testing.assert_allclose(sample.coverage.sum(axis=0), 1, atol=1e-5)


def test_chirp_edits_change_the_axes_alone_and_keep_the_noise():
    for index in range(10):
        original, scene = DATASET[index], DATASET.scene(index)
        outside = outside_mask([scene.projection.layout.axes], dilation_px=0)
        bare = twin_scene(DATASET, index, without("chirp"))
        np.testing.assert_array_equal(bare.noise, scene.noise)
        assert not twin(DATASET, index, without("chirp")).coverage[0].any()
        other = twin(DATASET, index, CHIRP_ELSEWHERE)
        assert (other.labels != original.labels).all()
        assert other.params.noise_level == original.params.noise_level
        for changed in (twin(DATASET, index, without("chirp")), other):
            np.testing.assert_array_equal(original.image[outside], changed.image[outside])
        # Far from both ridges nothing changes either: the noise and the colour limits are frozen.
        far = (original.coverage[0] == 0) & (other.coverage[0] == 0)
        assert (original.image[far] == other.image[far]).mean() > 0.9


def test_without_its_background_a_chirp_stands_on_bare_paper():
    for index in range(6):
        original, changed = DATASET[index], twin(DATASET, index, without("plot_background"))
        layout = DATASET.scene(index).projection.layout
        chirp, around = original.coverage[0] == 1, original.coverage[REGION_INDEX["plot_background"]] == 1
        assert around.any()
        np.testing.assert_array_equal(changed.image[around], layout.style.paper)
        np.testing.assert_array_equal(changed.image[chirp], original.image[chirp])
        assert not changed.coverage[REGION_INDEX["frame"]].any()
    whole = [(DATASET[index].coverage[0] == 1).sum() for index in range(6)]
    assert sum(whole) > 100


def test_published_frames_leave_everything_else_to_the_pixel():
    """On the canvas itself: lines and, with the background, the inside of the axes change; nothing moves."""
    published = ChirpDataset("test", 2, SynthConfig(preset="published"))
    for index in range(2):
        scene = published.scene(index)
        layout = scene.projection.layout
        before = scene.projection.canvas(scene.clean + scene.noise)
        lines = binary_dilation(layout.label_map == REGION_INDEX["frame"], np.ones((3, 3)))
        chirp = label_map(scene) == REGION_INDEX["chirp"]
        inner = binary_erosion(chirp, np.ones((9, 9)))  # matplotlib's grid is half a bin off the label map's
        for region, may_change in (("frame", lines), ("plot_background", lines.copy())):
            bare = twin_scene(published, index, without(region))
            after = bare.projection.canvas(bare.clean + bare.noise)
            if region == "plot_background":
                may_change[layout.axes.slices] = True
                background = layout.label_map == REGION_INDEX["plot_background"]
                far = background & ~binary_dilation(chirp, np.ones((9, 9)))
                assert far.any() and (after[far] == 255).all()
                np.testing.assert_array_equal(after[inner], before[inner])
            changed = (before != after).any(axis=2)
            assert changed[lines].any() and not changed[~may_change].any()
            assert not (bare.projection.layout.label_map == REGION_INDEX["frame"]).any()
            assert bare.projection.layout.axes == layout.axes


def test_moves_land_opposite_and_inside_the_canvas():
    moved = 0
    for index in range(40):
        scene = DATASET.scene(index)
        for region in ("colorbar", "title"):
            if has_region(scene, region):
                layout = twin_scene(DATASET, index, move(region)).projection.layout
                old = next(item.box for item in scene.projection.layout.items if item.region == region)
                new = next(item.box for item in layout.items if item.region == region)
                assert old != new and all(item.box.inside_canvas() for item in layout.items)
                texts = [item.box for item in layout.items if item.text is not None]
                taken = np.zeros((480, 640), dtype=int)
                for box in texts:
                    taken[box.slices] += 1
                assert taken.max() <= 1
                moved += 1
    assert moved >= 20


def test_replaced_text_keeps_its_boxes():
    for index in range(10):
        scene = DATASET.scene(index)
        if has_region(scene, "text"):
            layout = twin_scene(DATASET, index, replace_text("text")).projection.layout
            before = sorted(
                (item.region, item.box.row0, item.box.col0, item.box.row1) for item in scene.projection.layout.items
            )
            after = sorted((item.region, item.box.row0, item.box.col0, item.box.row1) for item in layout.items)
            assert before == after
            texts = {item.text for item in scene.projection.layout.items if item.text}
            assert {item.text for item in layout.items if item.text} != texts


def test_twins_of_absent_things_are_refused():
    bare = next(index for index in range(40) if not DATASET.scene(index).projection.layout.items)
    for edit in (without("colorbar"), move("title"), replace_text("text")):
        with pytest.raises(ValueError, match=f"picture {bare} of test has no"):
            twin(DATASET, bare, edit)
    dressed = next(index for index in range(40) if has_region(DATASET.scene(index), "colorbar"))
    with pytest.raises(ValueError, match="only text can be replaced"):
        twin(DATASET, dressed, replace_text("colorbar"))


def test_published_twins():
    published = ChirpDataset("test", 2, SynthConfig(preset="published"))
    original = published[0]
    for region in ("title", "colorbar", "text"):
        changed = twin(published, 0, without(region))
        gone = {"title": ("title",), "text": TEXT_REGIONS}.get(region, ("colorbar", "colorbar_ticks", "colorbar_label"))
        assert not changed.coverage[[REGION_INDEX[name] for name in gone]].any()
        inside = original.coverage[[0, REGION_INDEX["plot_background"]]].sum(axis=0) == 1
        np.testing.assert_array_equal(original.image[inside], changed.image[inside])
        assert (original.image != changed.image).any()
    bare = twin(published, 0, without("chirp"))
    far = original.coverage[REGION_INDEX["margin"]] == 1
    np.testing.assert_array_equal(original.image[far], bare.image[far])
    assert (twin(published, 0, replace_text("title")).image != original.image).any()
    with pytest.raises(ValueError, match="no room for this edit"):
        twin(published, 0, move("colorbar"))
