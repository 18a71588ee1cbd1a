import pickle

import numpy as np
import pytest

from data_synth import REGIONS, ChirpDataset, SynthConfig, labelled_pictures
from data_synth.dataset import label_map, render_image
from data_synth.layouts import grid_cols, grid_rows, make_layout
from data_synth.raster import REGION_INDEX, coverage_counts
from data_synth.twins import twin, without

SMALL = SynthConfig(num_layouts=6)


def area_mean(canvas, size=224):
    """Second derivation of the downsampling: repeat pixels to a common multiple, then take block means."""
    rows = np.repeat(canvas.astype(np.float64), 7, axis=0).reshape(size, 15, canvas.shape[1], 3).mean(axis=1)
    return np.repeat(rows, 7, axis=1).reshape(size, size, 20, 3).mean(axis=2)


def test_picture_is_the_area_mean_of_the_full_canvas():
    dataset = ChirpDataset("test", 8, SMALL)
    for index in range(8):
        scene = dataset.scene(index)
        layout = scene.projection.layout
        values = scene.clean + scene.noise
        level = np.clip((values + 0.25) * (256 / 1.1), 0, 255).astype(np.uint8)
        canvas = layout.canvas.copy()
        canvas[layout.axes.slices] = scene.projection.lut[level][np.ix_(grid_rows(layout.axes), grid_cols(layout.axes))]
        difference = render_image(scene, SMALL) - area_mean(canvas)
        assert np.abs(difference).max() <= 0.5 + 1e-3


def test_coverage_and_patch_labels_are_those_of_the_label_map():
    dataset = ChirpDataset("test", 6, SMALL)
    for index in range(6):
        sample, labels = dataset[index], label_map(dataset.scene(index))
        np.testing.assert_allclose(sample.coverage, coverage_counts(labels, 224) / 300, atol=1e-6)
        np.testing.assert_allclose(sample.coverage.sum(axis=0), 1, atol=1e-5)
        for row in range(16):
            for col in range(16):
                patch = sample.coverage[:, row * 14 : row * 14 + 14, col * 14 : col * 14 + 14].mean(axis=(1, 2))
                enough = patch >= np.array([0.01] + [0.05] * 9 + [2, 2]) - 1e-6
                if enough.any():
                    expected = int(enough.argmax())
                else:
                    expected = 10 if patch[10] >= patch[11] - 1e-6 else 11
                assert sample.patch_labels[row, col] == expected


def test_chirp_mask_is_where_the_twin_differs():
    dataset = ChirpDataset("test", 60)
    checked = 0
    for index in range(60):
        scene = dataset.scene(index)
        if scene.projection.layout.style.colormap != "gray":
            continue
        layout = scene.projection.layout
        shown = np.ix_(grid_rows(layout.axes), grid_cols(layout.axes))
        difference = np.abs(scene.clean[shown])
        seen = difference > difference.max() / 2
        mask = label_map(scene)[layout.axes.slices] == REGION_INDEX["chirp"]
        assert (seen & mask).sum() / (seen | mask).sum() >= 0.9
        # And in the picture: a grey colour map is linear, so the drawn difference is the ridge.
        sample, bare = dataset[index], twin(dataset, index, without("chirp"))
        drawn = np.abs(sample.image.astype(float) - bare.image)[..., 0]
        inside = sample.coverage[0] > 0.5
        assert drawn[inside].mean() > 10 * drawn[sample.coverage[0] == 0].mean()
        checked += 1
    assert checked >= 3


def test_same_pictures_for_any_order_count_or_process():
    dataset = ChirpDataset("train", 10, SMALL)
    first = [dataset[index].image for index in range(4)]
    other = ChirpDataset("train", 4000, SMALL)
    for index in (3, 1, 0, 2):
        np.testing.assert_array_equal(other[index].image, first[index])
    copied = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copied[2].image, first[2])


def test_splits_share_no_chirp_and_no_layout():
    chirps = {split: {ChirpDataset(split, 50, SMALL).params(i) for i in range(50)} for split in ("train", "test")}
    assert not chirps["train"] & chirps["test"]
    styles = [{make_layout(0, split, i).style for i in range(60)} for split in ("train", "validation", "test")]
    assert not styles[0] & styles[1] and not styles[0] & styles[2] and not styles[1] & styles[2]


def test_title_and_style_do_not_leak_the_chirp():
    dataset = ChirpDataset("train", 300, SynthConfig(num_layouts=64))
    for index in range(300):
        scene = dataset.scene(index)
        title = scene.projection.layout.style.title or ""
        assert scene.params.chirp_type not in title


def test_published_preset_draws_the_published_title_and_ticks():
    dataset = ChirpDataset("test", 2, SynthConfig(preset="published"))
    sample, scene = dataset[0], dataset.scene(0)
    assert scene.projection.title == f"Synthetic Spectrogram 1 ({scene.params.chirp_type} chirp)"
    present = {REGIONS[index] for index in np.flatnonzero(sample.coverage.any(axis=(1, 2)))}
    assert present == set(REGIONS)
    np.testing.assert_allclose(sample.coverage.sum(axis=0), 1, atol=1e-5)
    canvas = scene.projection.canvas(scene.clean + scene.noise)
    assert np.abs(sample.image - area_mean(canvas)).max() <= 0.5 + 1e-3


def test_labelled_pictures_are_the_same_pictures():
    pictures = labelled_pictures("validation", 3)
    dataset = ChirpDataset("validation", 3)
    item = pictures[1]
    np.testing.assert_array_equal(item["image"], dataset[1].image)
    np.testing.assert_array_equal(item["labels"], dataset[1].labels)
    np.testing.assert_array_equal(pictures.labels_array(3)[1], dataset[1].labels)
    assert pictures.synthesizer["preset"] == "default" and pictures.synthesizer["version"] >= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChirpDataset("dev", 1), "split: expected one of"),
        (lambda: ChirpDataset("test", 0), "count: expected at least 1"),
        (lambda: SynthConfig(preset="x"), "preset: expected one of"),
        (lambda: SynthConfig(image_size=220), "multiple of patch_size"),
        (lambda: SynthConfig(num_layouts=0), "num_layouts: expected"),
        (lambda: SynthConfig(seed=-1), "seed: expected"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_index_out_of_range():
    with pytest.raises(IndexError, match="expected 0 to 0"):
        ChirpDataset("test", 1)[1]
