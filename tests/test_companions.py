"""Donors and counterfactuals: whose they are, and that they are those of the picture whatever the run."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from analysis.companions import NUM_DONORS, counterfactual_images, donor_images, donor_rows
from analysis.lent_contexts import with_companions
from analysis.models import make_batch, open_model, preprocessed
from analysis.pictures import PictureSource, open_source
from data_synth import ChirpDataset, SynthConfig
from data_synth.twins import twin, without

NAMES = ("start_time_s", "start_freq_hz", "end_freq_hz")


def open_synthetic(count, preset="default"):
    return open_source(preset, count, seed=0, image_size=224, patch_size=14, target_names=NAMES)


def test_donors_are_reference_pictures_drawn_by_the_number_of_the_picture():
    source = open_synthetic(3)
    assert source.num_references == 512 and not source.references_are_own
    rows = donor_rows(source, 2, seed=5)
    expected = np.random.default_rng([5, 3, 2]).choice(512, 4, replace=False)
    np.testing.assert_array_equal(rows, expected)
    assert len(set(rows.tolist())) == NUM_DONORS
    images = donor_images(source, [2], seed=5)
    train = ChirpDataset("train", 512, SynthConfig())
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(images[0, place], train.image(int(row)))
    np.testing.assert_array_equal(donor_rows(open_synthetic(9), 2, seed=5), rows)


@pytest.mark.parametrize("preset", ["default", "published"])
def test_the_counterfactual_is_the_twin_without_the_chirp(preset):
    dataset = ChirpDataset("test", 3, SynthConfig(preset=preset))
    found = counterfactual_images(open_synthetic(3, preset), [1])
    np.testing.assert_array_equal(found[0], twin(dataset, 1, without("chirp")).image)
    assert (found[0] != dataset.image(1)).any()


def test_a_picture_is_never_its_own_donor():
    own = PictureSource(6, None, {}, reference=lambda rows: np.array(rows), num_references=5, references_are_own=True)
    for row in range(6):
        rows = donor_rows(own, row, seed=0)
        assert row not in rows and len(set(rows.tolist())) == 4
    few = PictureSource(4, None, {}, reference=lambda rows: np.array(rows), num_references=4, references_are_own=True)
    with pytest.raises(ValueError, match="at least 4 other pictures to draw from, got 3"):
        donor_rows(few, 0, seed=0)
    with pytest.raises(ValueError, match="no twin without the thing"):
        counterfactual_images(own, [0])


def test_companions_join_the_batch_as_the_model_takes_them():
    opened = open_model("tiny-random", "cpu")
    source = open_synthetic(3)
    pictures = source.draw([2, 0])
    batch = make_batch(opened, pictures)
    assert with_companions(opened, batch, source, 0, []).donor_pixel_values is None
    whole = with_companions(opened, batch, source, 0, ["donor_pixel_values", "counterfactual_pixel_values"])
    donors = donor_images(source, [2, 0], seed=0)
    for image in range(2):
        for place in range(4):
            expected = preprocessed(opened, donors[image, place][None])[0]
            torch.testing.assert_close(whole.donor_pixel_values[image, place], expected, rtol=0, atol=0)
    twins = preprocessed(opened, counterfactual_images(source, [2, 0]))
    torch.testing.assert_close(whole.counterfactual_pixel_values, twins, rtol=0, atol=0)


def test_optional_fields_follow_their_pictures():
    batch = tiny_batch(tiny_model())
    parts = list(batch.chunks(3))
    for name in ("donor_pixel_values", "counterfactual_pixel_values"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
