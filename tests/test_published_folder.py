import hashlib
import io
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.pictures import open_source
from attribution.datasets import open_dataset
from data_synth import REGIONS, TEXT_REGIONS, ChirpDataset, SynthConfig
from data_synth.chirp import ChirpParams, chirp_mask, noise, ridge
from data_synth.dataset import Scene, label_map, labels_of
from data_synth.folder import read_mask
from data_synth.published import published_figure
from data_synth.published_folder import COLUMNS, convert_folder, main, metadata_table, read_labels, resized
from data_synth.published_masks import default_figure, read_canvas, reconstruct_label_map, shown_values
from data_synth.raster import REGION_INDEX

TARGETS = ("start_time_s", "start_freq_hz", "end_freq_hz")
NUM_PICTURES = 12
# Among the first twelve of this seed: five exponential chirps, ends clipped at 0 and 100 Hz, two of about a second.
DATASET = ChirpDataset("test", NUM_PICTURES, SynthConfig(preset="published", seed=16))


def write_source(folder, scenes):
    folder.mkdir()
    lines = [",".join(COLUMNS)]
    for number, scene in enumerate(scenes, start=1):
        canvas = scene.projection.canvas(scene.clean + scene.noise)
        opaque = np.dstack([canvas, np.full(canvas.shape[:2], 255, dtype=np.uint8)])
        Image.fromarray(opaque).save(folder / f"spectrogram_{number}.png", compress_level=1)
        chirp = scene.params
        numbers = (chirp.start_time_s, chirp.start_freq_hz, chirp.end_freq_hz, chirp.duration_s)
        lines.append(",".join([*(repr(float(value)) for value in numbers), chirp.chirp_type]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def scenes():
    return [DATASET.scene(index) for index in range(NUM_PICTURES)]


@pytest.fixture(scope="module")
def source(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("published") / "output"
    write_source(folder, scenes)
    return folder


@pytest.fixture(scope="module")
def destination(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("converted") / "chirps"
    assert list(convert_folder(source, folder)) == [NUM_PICTURES]
    return folder


@pytest.fixture
def copy(tmp_path, source):
    """A source of the first three pictures, to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    lines = (source / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(lines[:4]) + "\n")
    for number in (1, 2, 3):
        name = f"spectrogram_{number}.png"
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def convert(source, destination, **options):
    return list(convert_folder(source, destination, **options))


def refused(source, tmp_path, match, **options):
    with pytest.raises((ValueError, OSError), match=match) as caught:
        convert(source, tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def change(path, rows, cols, colour):
    pixels = np.asarray(Image.open(path)).copy()
    pixels[rows, cols, : len(colour)] = colour
    Image.fromarray(pixels).save(path)


def test_the_twelve_pictures_cover_the_cases(scenes):
    chirps = [scene.params for scene in scenes]
    assert sum(chirp.chirp_type == "exponential" for chirp in chirps) == 5
    assert {0.0, 100.0} <= {chirp.end_freq_hz for chirp in chirps}
    assert sum(chirp.duration_s < 1.3 for chirp in chirps) == 2


def test_masks_and_pictures_are_the_true_ones_to_the_bit(destination, scenes):
    """Every pixel of every mask and picture, not nearly all of them."""
    for index, scene in enumerate(scenes):
        name = f"{index:07d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(destination / "masks" / name)), label_map(scene))
        values = scene.clean + scene.noise
        image = np.asarray(Image.open(destination / "images" / name))
        np.testing.assert_array_equal(image, scene.projection.image(values, 224))
    for index in (0, 7):
        sample = DATASET[index]
        coverage, patch_labels = read_mask(destination / "masks" / f"{index:07d}.png", 224, 14)
        np.testing.assert_array_equal(coverage, sample.coverage)
        np.testing.assert_array_equal(patch_labels, sample.patch_labels)


@pytest.mark.parametrize(
    ("chirp", "pixels_expected"),
    [
        (ChirpParams(20.0, 8.0, 0.3, 25.0, "exponential", 0.2), True),
        (ChirpParams(20.0, 8.0, 20.0, 0.0, "exponential", 0.2), True),
        (ChirpParams(0.0, 15.0, 99.9, 100.0, "linear", 0.1), True),
        (ChirpParams(45.0, 15.0, 0.0, 0.0, "linear", 0.1), True),
        (ChirpParams(20.0, 0.4, 30.0, 40.0, "linear", 0.2), False),
    ],
    ids=["from 0 Hz", "to 0 Hz", "at the top", "at the bottom and the end", "shorter than a bin"],
)
def test_masks_of_chirps_at_the_edges(chirp, pixels_expected):
    clean = ridge(chirp, "published")
    background = noise(np.random.default_rng(3), chirp.noise_level)
    figure = published_figure(clean + background, chirp, 99_999)
    truth = label_map(Scene(99_999, "test", chirp, clean, background, figure))
    labels = reconstruct_label_map(figure.canvas(clean + background), chirp)
    np.testing.assert_array_equal(labels, truth)
    assert (labels == REGION_INDEX["chirp"]).any() == pixels_expected


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-0.2, 0.4), (-1.0, 0.25), (-0.55, 1.21)])
def test_ticks_of_the_colour_bar_are_found_at_its_very_ends(limits):
    chirp = ChirpParams(20.0, 8.0, 30.0, 50.0, "linear", 0.2)
    clean = ridge(chirp, "published")
    figure = published_figure(clean, chirp, 0, limits=limits)
    truth = label_map(Scene(0, "test", chirp, clean, np.zeros_like(clean), figure))
    np.testing.assert_array_equal(reconstruct_label_map(figure.canvas(clean), chirp), truth)


def test_the_generator_itself(tmp_path, monkeypatch):
    from chirp_spectrogram_generator import SpectrogramGenerator

    matplotlib.use("Agg")
    np.random.seed(4)  # noqa: NPY002 - the generator draws from the global state
    generator = SpectrogramGenerator(output_dir=str(tmp_path / "output"))
    generator.generate_dataset(6)
    assert convert(tmp_path / "output", tmp_path / "chirps") == [6]
    labels = pd.read_csv(tmp_path / "output" / "labels.csv")
    table = pd.read_csv(tmp_path / "chirps" / "metadata.csv")
    columns = ["start_time_s", "start_freq_hz", "end_freq_hz", "duration_s", "chirp_type"]
    assert table[columns].to_numpy().tolist() == labels[list(COLUMNS)].to_numpy().tolist()

    monkeypatch.setattr("numpy.random.randn", lambda *shape: np.zeros(shape))
    figure = default_figure()
    for number, row in enumerate(labels.itertuples(index=False), start=1):
        canvas = read_canvas(tmp_path / "output" / f"spectrogram_{number}.png")
        regions = np.asarray(Image.open(tmp_path / "chirps" / table.mask_file_name[number - 1]))
        drawn = generator.create_spectrogram_with_chirp(*row)
        chirp = read_labels(tmp_path / "output" / "labels.csv")[0][number - 1]
        mask = chirp_mask(ridge(chirp, "published"))
        alone = drawn > drawn.max() / 2
        assert (mask & alone).sum() >= 0.9 * (mask | alone).sum()
        values = shown_values(canvas)
        assert values[alone].mean() > values[~alone].mean() + 1.5 * values[~alone].std()
        # Whatever is inked outside the axes and the bar, but for the outline of the bar, is some text or the frame.
        inked = (canvas.min(axis=2) < 255) & (regions == REGION_INDEX["margin"])
        inked[56:429, 500:522] = False
        assert not inked.any()
        for name in TEXT_REGIONS:
            assert (regions == REGION_INDEX[name]).sum() > 100
        assert (regions[figure.lines] == REGION_INDEX["frame"]).mean() > 0.95


def test_folder_is_read_by_those_who_read_folders(destination, scenes):
    labels = np.stack([labels_of(scene.params) for scene in scenes])
    training = open_dataset(str(destination), "all", 100, targets=TARGETS)
    np.testing.assert_array_equal(training.labels_array(100), labels)
    pictures = open_source(
        str(destination), NUM_PICTURES, seed=0, image_size=224, patch_size=14, target_names=TARGETS
    ).draw([2, 5])
    np.testing.assert_array_equal(pictures.labels, labels[[2, 5]])
    np.testing.assert_array_equal(pictures.images[1], training[5]["image"])
    np.testing.assert_array_equal(pictures.patch_labels[1], DATASET[5].patch_labels)
    np.testing.assert_array_equal(pictures.masks["chirp"][1], DATASET[5].coverage[REGIONS.index("chirp")])
    table = pd.read_csv(destination / "metadata.csv")
    assert list(table.columns) == ["file_name", "mask_file_name", *TARGETS, "duration_s", "chirp_type"]


def test_bilinear_is_what_pillow_makes_of_the_picture(source, destination, tmp_path):
    convert(source, tmp_path / "small", resize="bilinear", image_size=56, max_pictures=2)
    with Image.open(source / "spectrogram_2.png") as picture:
        expected = np.asarray(picture.convert("RGB").resize((56, 56), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "small" / "images" / "0000001.png")), expected)
    assert len(pd.read_csv(tmp_path / "small" / "metadata.csv")) == 2
    name = "masks/0000001.png"
    assert (tmp_path / "small" / name).read_bytes() == (destination / name).read_bytes()


def test_area_average_of_one_colour_is_that_colour():
    canvas = np.full((480, 640, 3), (7, 128, 255), dtype=np.uint8)
    for size in (1, 56, 223, 384):
        np.testing.assert_array_equal(resized(canvas, size, "area"), np.full((size, size, 3), (7, 128, 255)))


def test_same_bytes_after_a_kill_and_for_any_number_of_processes(source, destination, tmp_path, monkeypatch):
    monkeypatch.setattr("data_synth.published_folder.CHUNK", 5)
    halted = convert_folder(source, tmp_path / "halted")
    assert next(halted) == 5
    halted.close()
    assert not (tmp_path / "halted" / "metadata.csv").exists()
    (tmp_path / "halted" / "images" / "0000003.png").unlink()
    kept = (tmp_path / "halted" / "masks" / "0000001.png").stat().st_mtime_ns
    assert convert(source, tmp_path / "halted") == [5, 10, 12]
    assert (tmp_path / "halted" / "masks" / "0000001.png").stat().st_mtime_ns == kept
    assert convert(source, tmp_path / "two", num_processes=2)[-1] == NUM_PICTURES
    assert convert(source, tmp_path / "one") == [5, 10, 12]
    assert digest(destination) == digest(tmp_path / "halted") == digest(tmp_path / "two") == digest(tmp_path / "one")


def test_another_data_set_in_the_destination_is_refused(copy, source, tmp_path):
    convert(copy, tmp_path / "chirps")
    before = digest(tmp_path / "chirps")
    with pytest.raises(ValueError, match=r"dataset\.json: holds another data set \(differs in labels_sha256\)"):
        convert(source, tmp_path / "chirps")
    with pytest.raises(ValueError, match=r"\(differs in image_size, resize\)"):
        convert(copy, tmp_path / "chirps", resize="bilinear", image_size=112)
    assert digest(tmp_path / "chirps") == before
    (tmp_path / "chirps" / "dataset.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"dataset\.json: expected what describes a data set"):
        convert(copy, tmp_path / "chirps")
    (tmp_path / "chirps" / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"dataset\.json: not found, but metadata\.csv, images, masks beside it"):
        convert(copy, tmp_path / "chirps")
    with pytest.raises(ValueError, match="not the source"):
        convert(copy, copy)


def test_pictures_of_a_source_that_has_changed_are_converted_anew(copy, source, tmp_path):
    """After a whole conversion and after one that was stopped, as a conversion from nothing gives them."""
    folder = tmp_path / "chirps"
    convert(copy, folder)
    kept = (folder / "images" / "0000000.png").stat().st_mtime_ns
    for hue, stopped in ((0, False), (60, True)):
        change(copy / "spectrogram_2.png", slice(60, 63), slice(90, 100), (hue, 80, 80))
        if stopped:
            (folder / "metadata.csv").unlink()
        convert(copy, folder)
        convert(copy, tmp_path / f"fresh-{hue}")
        assert digest(folder) == digest(tmp_path / f"fresh-{hue}")
    assert digest(tmp_path / "fresh-0") != digest(tmp_path / "fresh-60")
    assert (folder / "images" / "0000000.png").stat().st_mtime_ns == kept
    # The same picture in another resizing: of the same size, and whole.
    before = digest(folder)
    convert(copy, tmp_path / "bilinear", resize="bilinear")
    (folder / "images" / "0000001.png").write_bytes((tmp_path / "bilinear" / "images" / "0000001.png").read_bytes())
    convert(copy, folder)
    assert digest(folder) == before


def test_rows_of_other_pictures_are_refused(source, tmp_path, monkeypatch):
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for path in source.glob("*.png"):
        (shifted / path.name).symlink_to(path)
    header, *rows = (source / "labels.csv").read_text().splitlines()
    (shifted / "labels.csv").write_text("\n".join([header, *rows[1:], rows[0]]) + "\n")
    refused(shifted, tmp_path, r"spectrogram_1\.png: expected a chirp where its row of labels\.csv says")
    # Every picture is looked at, not the first alone.
    monkeypatch.setattr("data_synth.published_folder.NUM_CHECKED_FIRST", 2)
    (shifted / "labels.csv").write_text("\n".join([header, *rows[:4], rows[5], rows[4], *rows[6:]]) + "\n")
    with pytest.raises(ValueError, match=r"spectrogram_5\.png: expected a chirp"):
        convert(shifted, tmp_path / "chirps")
    assert json.loads((tmp_path / "chirps" / "dataset.json").read_text())["resize"] == "area"
    assert not (tmp_path / "chirps" / "metadata.csv").exists()


def test_most_rows_of_other_pictures_would_be_noticed(source, scenes):
    noticed = 0
    for number in range(1, NUM_PICTURES):
        canvas = read_canvas(source / f"spectrogram_{number}.png")
        try:
            reconstruct_label_map(canvas, scenes[number].params)
        except ValueError:
            noticed += 1
    assert noticed >= 8


@pytest.mark.parametrize(
    ("row", "column", "value", "expected"),
    [
        (2, 0, "nan", "row 2, Chirp_Start_Time: expected a finite number from 0 to 60, got 'nan'"),
        (2, 0, "1_0", "row 2, Chirp_Start_Time: expected a finite number from 0 to 60, got '1_0'"),
        (3, 1, "low", "row 3, Chirp_Start_Freq: expected a finite number from 0 to 100, got 'low'"),
        (3, 2, "inf", "row 3, Chirp_End_Freq: expected a finite number from 0 to 100, got 'inf'"),
        (4, 2, "-1", "row 4, Chirp_End_Freq: expected a finite number from 0 to 100, got '-1'"),
        (4, 3, "", "row 4, Chirp_Duration: expected a finite number from 0 to 60, got ''"),
        (4, 3, "60", "row 4, Chirp_Duration: expected an end at 60 s or before"),
        (4, 4, "quadratic", "row 4, Chirp_Type: expected one of linear, exponential, got 'quadratic'"),
    ],
)
def test_rows_that_are_no_chirps_are_refused(copy, tmp_path, row, column, value, expected):
    lines = [line.split(",") for line in (copy / "labels.csv").read_text().splitlines()]
    lines[row - 1][column] = value
    (copy / "labels.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    refused(copy, tmp_path, rf"labels\.csv: {expected}")


def test_tables_that_are_no_labels_are_refused(copy, tmp_path):
    path = copy / "labels.csv"
    whole = path.read_text()
    for text, expected in (
        (
            whole.replace("Chirp_Duration", "Duration"),
            r"no column Chirp_Duration, found Chirp_Start_Time, .*, Duration",
        ),
        (whole.splitlines()[0] + "\n", "expected at least one row"),
        (whole.rpartition(",")[0], "row 4, Chirp_Type: expected one of linear, exponential"),
        (whole + "1,2,3,4,linear,5\n", "not a readable table"),
        (
            "\n".join([whole.splitlines()[0], *(f"{line},1" for line in whole.splitlines()[1:])]),
            r"not a readable table \(row 2: expected 5 fields, got 6\)",
        ),
        (
            "\n".join([f"{whole.splitlines()[0]},Chirp_Duration", *(f"{line},1" for line in whole.splitlines()[1:])]),
            "expected one column Chirp_Duration, found Chirp_Start_Time, .*, Chirp_Duration",
        ),
        ("", "not a readable table"),
    ):
        path.write_text(text)
        refused(copy, tmp_path, rf"labels\.csv: {expected}")
    path.unlink()
    refused(copy, tmp_path, r"labels\.csv: not found, expected the columns Chirp_Start_Time")


def test_pictures_and_rows_must_be_as_many(copy, tmp_path):
    (copy / "spectrogram_4.png").write_bytes((copy / "spectrogram_3.png").read_bytes())
    refused(copy, tmp_path, r"spectrogram_4\.png: expected a row for it in labels\.csv, which has 3")
    refused(copy, tmp_path, r"spectrogram_4\.png: expected a row", max_pictures=2)
    (copy / "spectrogram_4.png").unlink()
    (copy / "spectrogram_2.png").unlink()
    refused(copy, tmp_path, r"spectrogram_2\.png: not found, expected a picture for each row")
    assert convert(copy, tmp_path / "one", max_pictures=1) == [1]


def test_files_that_are_no_such_pictures_are_refused(copy, tmp_path):
    path = copy / "spectrogram_2.png"
    whole = path.read_bytes()
    pixels = np.asarray(Image.open(path))
    path.unlink()
    os.mkfifo(path)
    refused(copy, tmp_path, r"spectrogram_2\.png: expected a PNG file, not a device or pipe")
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    refused(copy, tmp_path, r"spectrogram_2\.png: not a readable PNG file")
    for spoilt, expected in (
        (Image.fromarray(pixels).resize((320, 240)), "expected RGB or RGBA of 640 x 480 pixels, got RGBA of 320 x 240"),
        (Image.fromarray(pixels).convert("L"), "expected RGB or RGBA of 640 x 480 pixels, got L of 640 x 480"),
        (Image.fromarray(np.dstack([pixels[..., :3], pixels[..., 3] - 1])), "has transparent pixels"),
        (
            Image.fromarray(np.roll(pixels, 3, axis=0)),
            "expected axes around rows 58 to 427, columns 80 to 476, but row",
        ),
        (Image.fromarray(np.full_like(pixels, 255)), "expected axes around"),
        (Image.fromarray(pixels[..., [2, 1, 0, 3]]), "expected a colour bar of viridis in rows 57 to 427, columns 501"),
    ):
        spoilt.save(path)
        refused(copy, tmp_path, rf"spectrogram_2\.png: {expected}")


@pytest.mark.parametrize(
    ("rows", "cols", "colour", "expected"),
    [
        (slice(0, 50), slice(None), (255, 255, 255), None),
        (slice(0, 56), slice(None), (255, 255, 255), "expected a title above the axes"),
        (slice(450, 480), slice(None), (255, 255, 255), "expected ticks, tick labels and a label .* at the x axis"),
        (slice(None), slice(0, 40), (255, 255, 255), "expected ticks, tick labels and a label .* at the y axis"),
        (
            slice(None),
            slice(566, 640),
            (255, 255, 255),
            "expected ticks, .* a label apart from them at the colorbar axis",
        ),
        (slice(None), slice(521, 526), (255, 255, 255), "expected ticks, .* at the colorbar axis"),
        (slice(436, 448), slice(70, 90), (255, 255, 255), "expected a label at each of the 7 ticks of the x axis"),
        (slice(200, 210), slice(485, 490), (0, 0, 0), "expected white paper .* row 200, column 485 is not white"),
    ],
)
def test_pictures_whose_texts_are_not_where_they_must_be_are_refused(copy, tmp_path, rows, cols, colour, expected):
    change(copy / "spectrogram_2.png", rows, cols, colour)
    if expected is None:  # what is left of the title is still a title
        assert convert(copy, tmp_path / "chirps") == [3]
    else:
        refused(copy, tmp_path, rf"spectrogram_2\.png: {expected}")


def test_metadata_keeps_every_digit(scenes):
    table = metadata_table([scene.params for scene in scenes])
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    np.testing.assert_array_equal(again[list(TARGETS)], np.stack([labels_of(scene.params) for scene in scenes]))


def test_command_writes_and_refuses(copy, tmp_path, capsys):
    assert main([str(copy), str(tmp_path / "chirps"), "--max-pictures", "2"]) == 0
    assert capsys.readouterr().out.startswith("2 pictures in ")
    assert main([str(copy), str(tmp_path / "chirps")]) == 0
    assert len(pd.read_csv(tmp_path / "chirps" / "metadata.csv")) == 3
    assert main([str(copy), str(tmp_path / "chirps"), "--resize", "bilinear"]) == 2
    assert "dataset.json: holds another data set (differs in resize)" in capsys.readouterr().err
    for option in ("--image-size", "--max-pictures", "--num-processes"):
        assert main([str(copy), str(tmp_path / "none"), option, "0"]) == 2
        assert f"error: {option[2:].replace('-', '_')}: expected at least 1, got 0" in capsys.readouterr().err
    assert main([str(copy), str(tmp_path / "none"), "--image-size", "100000"]) == 2
    assert "error: image_size: expected at most 4096, got 100000" in capsys.readouterr().err
    for name in ("", os.fsdecode(b"r\xe9")):
        assert main([str(copy), name]) == 2
        assert capsys.readouterr().err.startswith("error: destination: ")
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    assert main([str(copy), str(tmp_path / "file")]) == 2


def test_command_line_help():
    command = [sys.executable, "-m", "data_synth.published_folder", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.count("python -m data_synth.published_folder output chirps") == 2
