"""The colour bar's task: the pictures of the default preset, asked for the maximum of their colour bar."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from data_synth import ChirpDataset, LabelledPictures, SynthConfig, colorbar_pictures, labelled_pictures, task_of
from data_synth.__main__ import main
from data_synth.dataset import label_map
from data_synth.figure import takes_colorbar_max, with_colorbar_max
from data_synth.layouts import first_with_room, make_layout, project
from data_synth.placement import colorbar_items, moved_items
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

CONFIG, DEFAULT = SynthConfig(preset="colorbar", num_layouts=64), SynthConfig(num_layouts=64)
DATASET, PLAIN = ChirpDataset("test", 300, CONFIG), ChirpDataset("test", 300, DEFAULT)
PLAIN_LAYOUTS = [make_layout(0, "test", index) for index in range(64)]


def layout_of(index):
    return DATASET.scene(index).projection.layout


def bar_of(layout):
    """The bar, its tick lines, its tick labels and its label (or none), in this order."""
    own = [item for item in layout.items if item.owner == "colorbar"]
    (bar,) = (item for item in own if item.region == "colorbar")
    lines = [item for item in own if item.region == "frame"]
    labels = [item for item in own if item.region == "colorbar_ticks"]
    titles = [item for item in own if item.region == "colorbar_label"]
    assert len(titles) <= 1 and len(own) == 1 + len(lines) + len(labels) + len(titles)
    return bar, lines, labels, titles


def pool_index(layout):
    """Which layout of the pool this one was made of, by its style."""
    return next(i for i, plain in enumerate(PLAIN_LAYOUTS) if plain.style == replace(layout.style, colorbar_max=None))


def drawn_layout(dataset, index):
    """The pool index that picture ``index`` draws, before any layout is passed over."""
    (found,) = (
        i for i, plain in enumerate(PLAIN_LAYOUTS) if plain.style == dataset.scene(index).projection.layout.style
    )
    return found


def outside_of(boxes, margin_px=0):
    """Picture pixels [224 224] that none of the boxes touches, grown by some pixels of the canvas."""
    outside = np.ones((224, 224), dtype=bool)
    for box in boxes:
        row0, row1 = (box.row0 - margin_px) * 224 // 480, -(-(box.row1 + margin_px) * 224 // 480)
        col0, col1 = (box.col0 - margin_px) * 224 // 640, -(-(box.col1 + margin_px) * 224 // 640)
        outside[max(row0, 0) : row1, max(col0, 0) : col1] = False
    return outside


def test_ticks_stand_at_multiples_of_a_half_of_the_maximum_drawn():
    sides = set()
    for index in range(300):
        maximum, layout = DATASET.labels(index)[0], layout_of(index)
        bar, lines, labels, _ = bar_of(layout)
        values = [halves / 2 for halves in range(6) if halves / 2 <= maximum]
        assert 2 <= len(values) <= 6 and [item.text for item in labels] == [f"{value:.1f}" for value in values]
        side = layout.style.colorbar_side
        sides.add(side)
        for value, line, label in zip(values, lines, labels, strict=True):
            for item in (line, label):
                if side in ("left", "right"):
                    length = bar.box.row1 - bar.box.row0
                    offset = bar.box.row1 - (item.box.row0 + item.box.row1) / 2
                else:
                    length = bar.box.col1 - bar.box.col0
                    offset = (item.box.col0 + item.box.col1) / 2 - bar.box.col0
                # Ends of the bar are pixel centres; boxes are whole pixels.
                assert abs(offset - (0.5 + value / maximum * (length - 1))) <= 1
    assert sides >= {"left", "right", "top"}


def test_the_label_can_be_read_off_the_label_map_alone():
    """Spacing of the tick lines, found in the map of regions beside the bar, against the length of the bar."""
    checked = 0
    for index in range(120):
        layout, maximum = layout_of(index), DATASET.labels(index)[0]
        if layout.style.colorbar_side != "right":
            continue
        labels = label_map(DATASET.scene(index))
        rows, cols = np.nonzero(labels == REGION_INDEX["colorbar"])
        marks = np.flatnonzero(labels[:, cols.max() + 1] == REGION_INDEX["frame"])
        first_rows = marks[np.concatenate([[True], np.diff(marks) > 1])]
        spacing_px = (first_rows[-1] - first_rows[0]) / (len(first_rows) - 1)
        bar_px = rows.max() - rows.min()
        assert 0.5 * bar_px / spacing_px == pytest.approx(maximum, rel=0.015)
        checked += 1
    assert checked >= 30


def test_labels_are_the_maxima_wherever_they_are_asked_for():
    for index in (0, 3, 299):
        sample = DATASET[index]
        expected = np.random.default_rng([0, 2, index, 1001]).uniform(0.8, 2.6)
        assert sample.labels.dtype == np.float64 and sample.labels.tolist() == [expected]
        assert DATASET.colorbar_max(index) == DATASET.scene(index).colorbar_max == expected
        np.testing.assert_array_equal(DATASET.labels(index), sample.labels)
    assert PLAIN.colorbar_max(0) is None and PLAIN.scene(0).colorbar_max is None
    np.testing.assert_array_equal(PLAIN.labels(3), PLAIN[3].labels)


def test_same_pictures_for_any_order_count_process_or_compactness():
    first = {index: DATASET[index] for index in range(6)}
    for other in (
        ChirpDataset("test", 4000, CONFIG),
        ChirpDataset("test", 6, CONFIG, compact=True),
        pickle.loads(pickle.dumps(DATASET)),
    ):
        for index in (5, 0, 3):
            found = other[index]
            for name in ("image", "coverage", "patch_labels", "labels"):
                np.testing.assert_array_equal(getattr(found, name), getattr(first[index], name))


def test_chirp_and_noise_are_those_of_the_default_preset():
    for index in range(20):
        ours, plain = DATASET.scene(index), PLAIN.scene(index)
        assert ours.params == plain.params == DATASET.params(index)
        np.testing.assert_array_equal(ours.clean, plain.clean)
        np.testing.assert_array_equal(ours.noise, plain.noise)


def test_only_the_bar_differs_from_the_default_picture_of_the_same_layout():
    same_layout = 0
    for index in range(100):
        layout, plain = layout_of(index), PLAIN.scene(index).projection.layout
        if replace(layout.style, colorbar_max=None) != plain.style:
            continue
        others = [item for item in layout.items if item.owner != "colorbar"]
        assert layout.axes == plain.axes
        assert others == [item for item in plain.items if item.owner != "colorbar"]
        assert bar_of(layout)[0] == bar_of(plain)[0]
        ours, theirs = DATASET[index], PLAIN[index]
        moved = {item for item in (*layout.items, *plain.items) if item.owner == "colorbar"} - {bar_of(layout)[0]}
        outside = outside_of([item.box for item in moved])
        axes_px = ~outside_of([layout.axes])
        assert (outside & axes_px).sum() == axes_px.sum()
        np.testing.assert_array_equal(ours.image[outside], theirs.image[outside])
        np.testing.assert_array_equal(ours.coverage[:, outside], theirs.coverage[:, outside])
        assert (ours.image != theirs.image).any()
        same_layout += 1
    assert same_layout >= 5


def test_layouts_without_room_give_way_to_the_next_in_the_pool():
    takes = [takes_colorbar_max(layout) for layout in PLAIN_LAYOUTS]
    assert 0.1 < np.mean(takes) < 0.5
    passed_over = wrapped = 0
    for index in range(300):
        drawn, used = drawn_layout(PLAIN, index), pool_index(layout_of(index))
        expected = next(number % 64 for number in range(drawn, drawn + 64) if takes[number % 64])
        assert used == expected
        passed_over += used != drawn
        wrapped += used < drawn
    assert passed_over >= 30
    always_last = first_with_room(lambda index: project(PLAIN_LAYOUTS[index], 224, 14), 64)
    last = max(number for number in range(64) if takes[number])
    assert always_last(last) == last and always_last((last + 1) % 64) == takes.index(True)


def test_a_pool_without_any_bar_is_refused():
    seed = next(seed for seed in range(20) if not make_layout(seed, "test", 0).has("colorbar"))
    dataset = ChirpDataset("test", 2, SynthConfig(preset="colorbar", seed=seed, num_layouts=1))
    with pytest.raises(ValueError, match="num_layouts: expected a layout with a colour bar among them, got none in 1"):
        dataset.image(0)


def test_every_picture_has_a_bar_and_nothing_touches_or_leaves_the_canvas():
    for index in range(300):
        layout = layout_of(index)
        bar, lines, labels, titles = bar_of(layout)
        assert all(item.box.inside_canvas() for item in layout.items)
        taken = np.zeros((480, 640), dtype=int)
        for item in layout.items:
            if item.text is not None:
                taken[item.box.slices] += 1
        assert taken.max() <= 1
        # Neither the bar nor what belongs to it lies on anything else, the axes included.
        rest = np.zeros((480, 640), dtype=bool)
        rest[layout.axes.slices] = True
        for item in layout.items:
            if item.owner != "colorbar":
                rest[item.box.slices] = True
        assert not any(rest[item.box.slices].any() for item in (bar, *lines, *labels, *titles))
        texts_on_bar = [item for item in (*labels, *titles) if _overlap(item.box, bar.box)]
        assert texts_on_bar == [] and not any(_overlap(line.box, label.box) for line in lines for label in labels)


def _overlap(one, other):
    return one.row0 < other.row1 and other.row0 < one.row1 and one.col0 < other.col1 and other.col0 < one.col1


def test_every_maximum_fits_where_one_does():
    for layout in PLAIN_LAYOUTS[:30]:
        if takes_colorbar_max(layout):
            for maximum in np.linspace(0.8, 2.6, 37):
                changed = with_colorbar_max(layout, float(maximum))
                texts = [item.box for item in changed.items if item.text is not None]
                assert all(item.box.inside_canvas() for item in changed.items)
                assert not any(_overlap(a, b) for i, a in enumerate(texts) for b in texts[:i])


@pytest.mark.parametrize(("split", "index"), [("train", 1), ("train", 64), ("test", 193)])
def test_a_bar_whose_new_tick_labels_find_no_room_is_refused(split, index):
    layout = make_layout(0, split, index)
    assert layout.has("colorbar") and not takes_colorbar_max(layout)
    style = replace(layout.style, colorbar_max=2.6)
    bars = (*colorbar_items(style, layout.axes), *moved_items(style, layout.axes, "colorbar"))
    assert not all(item.box.inside_canvas() for item in bars)
    plain = (*colorbar_items(layout.style, layout.axes), *moved_items(layout.style, layout.axes, "colorbar"))
    assert all(item.box.inside_canvas() for item in plain)


def test_nothing_but_the_ticks_tells_the_maximum():
    """One layout with many maxima: the same but for tick lines and tick labels; the same picture without its bar."""
    for layout in filter(takes_colorbar_max, PLAIN_LAYOUTS):
        found = [with_colorbar_max(layout, maximum) for maximum in (0.81, 1.0, 1.4999, 1.7345, 2.6)]
        others = [[item for item in each.items if item not in (*bar_of(each)[1], *bar_of(each)[2])] for each in found]
        assert all(items == others[0] for items in others)
        for each in found:
            differs = (each.canvas != found[0].canvas).any(axis=-1)
            for item in (*bar_of(each)[1], *bar_of(each)[2], *bar_of(found[0])[1], *bar_of(found[0])[2]):
                differs[item.box.slices] = False
            assert not differs.any()


def test_the_maximum_is_uniform_and_independent_of_chirp_and_layout():
    count = 2000
    dataset = ChirpDataset("train", count, CONFIG)
    maxima = colorbar_pictures("train", count).labels_array(count)[:, 0]
    assert maxima.min() > 0.8 and maxima.max() < 2.6
    counts = np.histogram(maxima, bins=8, range=(0.8, 2.6))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 24.3  # chi squared, 7 degrees of freedom, p = 0.001
    params = [dataset.params(index) for index in range(count)]
    rngs = [np.random.default_rng([0, 0, index]) for index in range(count)]
    numbers = {
        name: [getattr(each, name) for each in params]
        for name in ("start_time_s", "duration_s", "start_freq_hz", "end_freq_hz", "noise_level")
    }
    numbers["exponential"] = [each.chirp_type == "exponential" for each in params]
    numbers["first draw"] = [rng.random() for rng in rngs]
    for _ in range(5):
        [rng.random() for rng in rngs]
    numbers["layout"] = [int(rng.integers(64)) for rng in rngs]
    for name, values in numbers.items():
        assert abs(np.corrcoef(maxima, np.array(values, dtype=float))[0, 1]) < 0.075, name  # p = 0.001
    layouts = np.array([dataset.scene(index).projection.layout.style.colorbar_gap_px for index in range(300)])
    assert abs(np.corrcoef(maxima[:300], layouts)[0, 1]) < 0.19
    other = [colorbar_pictures(split, count).labels_array(count)[:, 0] for split in ("validation", "test")]
    assert not set(maxima) & set(other[0]) and not set(maxima) & set(other[1])


def test_projections_made_again_are_those_made_from_scratch():
    for index in range(40):
        found = DATASET.scene(index).projection
        expected = project(found.layout, 224, 14)
        assert found.whole == expected.whole and found.crops.keys() == expected.crops.keys()
        for name in ("lut", "chrome", "rows", "cols", "patches"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert getattr(found, name).dtype == getattr(expected, name).dtype
        for region, (row0, col0, crop) in expected.crops.items():
            assert found.crops[region][:2] == (row0, col0)
            np.testing.assert_array_equal(found.crops[region][2], crop)


CHROME_EDITS = [
    *(without(region) for region in (*TEXT_REGIONS, "text", "colorbar", "frame")),
    move("colorbar"),
    move("title"),
    replace_text("text"),
    replace_text("colorbar_ticks"),
    grey_box("text"),
]


@pytest.mark.parametrize("edit", CHROME_EDITS, ids=str)
def test_twins_edit_their_boxes_alone(edit):
    checked = 0
    for index in range(14):
        scene = DATASET.scene(index)
        if not has_region(scene, edit.region):
            continue
        original, changed = DATASET[index], twin(DATASET, index, edit)
        outside = outside_of(edited_boxes(scene.projection.layout, edit, seed=index), margin_px=3)
        np.testing.assert_array_equal(original.image[outside], changed.image[outside])
        assert (original.image != changed.image).any()
        np.testing.assert_array_equal(original.labels, changed.labels)
        np.testing.assert_array_equal(original.coverage[0], changed.coverage[0])
        checked += 1
    assert checked >= 5


def test_the_twin_without_the_answer_tells_nothing_of_it():
    task = task_of("colorbar")
    for index in range(10):
        scene, bare = DATASET.scene(index), twin_scene(DATASET, index, without(task.answer))
        assert not any(item.owner == "colorbar" for item in bare.projection.layout.items)
        plain = next(
            each for each in PLAIN_LAYOUTS if each.style == replace(scene.projection.layout.style, colorbar_max=None)
        )
        kept = [item for item in plain.items if item.owner != "colorbar"]
        assert list(bare.projection.layout.items) == kept
        coverage = twin(DATASET, index, without(task.answer)).coverage
        assert not coverage[[REGION_INDEX[name] for name in task.answer_regions]].any()


def test_the_moved_bar_keeps_its_ticks_and_fits():
    for index in range(60):
        before, after = layout_of(index), twin_scene(DATASET, index, move("colorbar")).projection.layout
        old, new = bar_of(before), bar_of(after)
        assert [item.text for item in old[2]] == [item.text for item in new[2]]
        assert old[0].box != new[0].box and all(item.box.inside_canvas() for item in after.items)
        texts = [item.box for item in after.items if item.text is not None]
        assert not any(_overlap(a, b) for i, a in enumerate(texts) for b in texts[:i])


def test_a_chirp_elsewhere_leaves_the_labels():
    original, other = DATASET[1], twin(DATASET, 1, CHIRP_ELSEWHERE)
    assert original.params != other.params
    np.testing.assert_array_equal(original.labels, other.labels)


def test_tasks_of_presets():
    assert task_of("default") == task_of("published")
    assert task_of("default").target_names == ("start_time_s", "start_freq_hz", "end_freq_hz")
    assert task_of("default").answer == "chirp" and task_of("default").answer_regions == ("chirp",)
    assert task_of("colorbar").target_names == ("colorbar_max",) and task_of("colorbar").target_units == ("",)
    with pytest.raises(ValueError, match="preset: expected one of default, published, colorbar, got 'x'"):
        task_of("x")


def test_the_factory_gives_the_same_pictures_with_the_maximum_as_label():
    pictures = colorbar_pictures("validation", 3, seed=1)
    dataset = ChirpDataset("validation", 3, SynthConfig(preset="colorbar", seed=1))
    assert isinstance(pictures, LabelledPictures) and len(pictures) == 3 and pictures.reference_count == 512
    assert pictures == labelled_pictures("validation", 3, seed=1, preset="colorbar")
    assert pictures.target_names == ("colorbar_max",) and pictures.target_units == ("",)
    assert pictures.synthesizer["preset"] == "colorbar" and pictures.synthesizer["name"] == "data_synth"
    assert pictures.labels_array(3).shape == (3, 1)
    item = pictures[1]
    np.testing.assert_array_equal(item["image"], dataset.image(1))
    np.testing.assert_array_equal(item["labels"], dataset[1].labels)
    np.testing.assert_array_equal(pictures.labels_array(3)[1], item["labels"])
    plain = labelled_pictures("validation", 3)
    assert plain.target_names == task_of("default").target_names and plain.target_units == ("s", "Hz", "Hz")


def test_patches_of_the_answer_are_labelled():
    """Every bar is found in the labels of patches."""
    answer = [REGION_INDEX[name] for name in task_of("colorbar").answer_regions]
    for index in range(30):
        assert np.isin(DATASET[index].patch_labels, answer).sum() >= 6


def test_a_folder_of_them_names_the_maximum(tmp_path):
    arguments = ["--preset", "colorbar", "--split", "test", "--count", "2", "--processes", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "metadata.csv")
    dataset = ChirpDataset("test", 2, SynthConfig(preset="colorbar"))
    assert table["colorbar_max"].tolist() == [dataset.labels(index)[0] for index in range(2)]
    assert table["start_time_s"].tolist() == [dataset.params(index).start_time_s for index in range(2)]
