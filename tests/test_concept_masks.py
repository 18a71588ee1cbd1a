"""Masks of concepts against pictures and numbers made by hand."""

import numpy as np
import pytest

from analysis.concept_masks import CONCEPTS, FINER, concept_masks, drawn_masks, sink_mask
from analysis.pictures import open_pictures
from data_synth import REGIONS, TARGET_NAMES, TEXT_REGIONS


def square_picture():
    """A white square with its corners in the middle of patches (8 x 8 patches of 14 pixels)."""
    image = np.zeros((1, 112, 112, 3), dtype=np.uint8)
    image[0, 21:77, 35:91] = 255
    return image


def test_corners_and_edges_of_a_square():
    found = drawn_masks(square_picture(), 8, 8)
    corners = {(1, 2), (1, 6), (5, 2), (5, 6)}
    assert {tuple(place) for place in np.argwhere(found["corner"][0]).tolist()} == corners
    border = {(row, col) for row in (1, 5) for col in range(2, 7)} | {
        (row, col) for row in range(1, 6) for col in (2, 6)
    }
    assert {tuple(place) for place in np.argwhere(found["edge"][0]).tolist()} == border


def test_a_flat_picture_has_neither():
    found = drawn_masks(np.full((2, 112, 112, 3), 90, dtype=np.uint8), 8, 8)
    assert not found["edge"].any() and not found["corner"].any()


def test_sinks_are_far_out_by_tukey():
    norms = np.tile(np.arange(16.0), (2, 1)).reshape(2, 4, 4)  # quartiles 3.75 and 11.25, fence 33.75
    norms[1, 0, 0], norms[1, 3, 3] = 34.0, 33.0
    lower, upper = np.quantile(norms[1], (0.25, 0.75))
    expected = norms[1] > upper + 3 * (upper - lower)
    found = sink_mask(norms)
    assert not found[0].any() and (found[1] == expected).all() and found[1].sum() <= 1
    norms[1, 0, 0] = 100.0
    assert np.argwhere(sink_mask(norms)).tolist() == [[1, 0, 0]]


def test_concepts_share_no_patch_and_named_things_come_first():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(REGIONS), (3, 6, 6)).astype(np.uint8)
    drawn = {name: rng.random((3, 6, 6)) < 0.5 for name in ("corner", "edge")}
    sinks = rng.random((3, 6, 6)) < 0.3
    found = concept_masks(labels, drawn, sinks)
    assert list(found) == [*CONCEPTS, *FINER]
    assert (np.sum([found[name] for name in CONCEPTS], axis=0) <= 1).all()
    text = np.isin(labels, [REGIONS.index(name) for name in TEXT_REGIONS])
    assert (found["text"] == text).all()
    named = text | (labels == REGIONS.index("chirp")) | (labels == REGIONS.index("colorbar"))
    assert (found["sink"] == (sinks & ~named)).all()
    rest = ~sinks & ~named & (labels != REGIONS.index("plot_background"))  # where noise alone is
    assert (found["corner"] == (drawn["corner"] & rest)).all()
    assert (found["edge"] == (drawn["edge"] & ~drawn["corner"] & rest)).all()
    assert (np.sum([found[name] for name in FINER], axis=0) == text).all()


def test_real_pictures_have_edges_at_their_axes():
    pictures = open_pictures("default", 6, seed=0, image_size=224, patch_size=14, target_names=TARGET_NAMES)
    found = drawn_masks(pictures.images, 16, 16)
    frames = pictures.patch_labels == REGIONS.index("frame")
    assert frames.any() and found["edge"][frames].mean() > 0.8
    masks = concept_masks(pictures.patch_labels, found, np.zeros_like(found["edge"]))
    assert 0.02 < masks["edge"].mean() < 0.25  # so that lifts of 3 are possible
    margins = pictures.patch_labels == REGIONS.index("margin")
    assert found["edge"][margins].mean() < 0.2


@pytest.mark.parametrize("count", [1, 3])
def test_shapes(count):
    found = drawn_masks(np.zeros((count, 28, 28, 3), dtype=np.uint8), 2, 2)
    assert {mask.shape for mask in found.values()} == {(count, 2, 2)}
