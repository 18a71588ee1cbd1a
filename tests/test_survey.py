from dataclasses import replace

import numpy as np
import pytest

from analysis.pictures import PIXEL_REGIONS, Pictures
from analysis.survey import PICTURES_PER_PIECE, PackedMasks, in_pieces, joined, look_at

COUNT = 40


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return Pictures(
        images=rng.integers(0, 256, (COUNT, 10, 9, 3), dtype=np.uint8),
        labels=rng.normal(size=(COUNT, 3)),
        indices=np.arange(COUNT),
        patch_labels=rng.integers(0, 4, (COUNT, 5, 3), dtype=np.uint8),
        masks={name: rng.random((COUNT, 10, 9)).astype(np.float32) for name in PIXEL_REGIONS},
        mean_image=rng.random((10, 9, 3)) * 255,
    )


def part_of(pictures, rows):
    chosen = slice(rows[0], rows[-1] + 1)
    return replace(
        pictures,
        images=pictures.images[chosen],
        labels=pictures.labels[chosen],
        indices=pictures.indices[chosen],
        patch_labels=None if pictures.patch_labels is None else pictures.patch_labels[chosen],
        masks=None if pictures.masks is None else {name: one[chosen] for name, one in pictures.masks.items()},
    )


def changed(pictures, name, place, by=1):
    values = getattr(pictures, name).copy()
    values[place] += by
    return replace(pictures, **{name: values})


def assert_same(found, expected):
    assert found.picture_sha256 == expected.picture_sha256 and found.baseline_sha256 == expected.baseline_sha256
    assert found.sha256 == expected.sha256 and len(found) == len(expected)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for name in ("patch_labels", "masks"):
        assert (getattr(found, name) is None) == (getattr(expected, name) is None)
    if expected.patch_labels is not None:
        np.testing.assert_array_equal(found.patch_labels, expected.patch_labels)
    if expected.masks is not None:
        assert found.masks.shape == expected.masks.shape
        np.testing.assert_array_equal(found.masks[:], expected.masks[:])


def test_sixteen_pictures_a_piece():
    assert PICTURES_PER_PIECE == 16
    assert in_pieces(range(36)) == [tuple(range(16)), tuple(range(16, 32)), tuple(range(32, 36))]
    assert in_pieces([5, 3, 8]) == [(5, 3, 8)] and in_pieces([]) == []
    assert [len(piece) for piece in in_pieces(range(32))] == [16, 16]


@pytest.mark.parametrize(
    ("name", "place", "by"),
    [
        ("images", (7, 9, 8, 2), 1),
        ("labels", (7, 1), 1e-9),
        ("indices", 7, 1000),
    ],
)
def test_a_picture_that_changed_changes_its_own_piece_alone(pictures, name, place, by):
    before, after = look_at(pictures), look_at(changed(pictures, name, place, by))
    assert [one == other for one, other in zip(before.picture_sha256, after.picture_sha256, strict=True)] == [
        row != 7 for row in range(COUNT)
    ]
    assert [one == other for one, other in zip(before.pieces(), after.pieces(), strict=True)] == [False, True, True]
    assert before.sha256 != after.sha256


def test_another_mean_picture_changes_every_piece(pictures):
    before, after = look_at(pictures), look_at(changed(pictures, "mean_image", (0, 0, 0), 1e-6))
    assert before.picture_sha256 == after.picture_sha256
    assert not {piece.sha256 for piece in before.pieces()} & {piece.sha256 for piece in after.pieces()}
    assert before.sha256 != after.sha256


def test_patch_labels_are_part_of_the_whole_and_not_of_the_pieces(pictures):
    before, after = look_at(pictures), look_at(changed(pictures, "patch_labels", (7, 1, 1), 1))
    without = look_at(replace(pictures, patch_labels=None))
    assert before.pieces() == after.pieces() == without.pieces()
    assert len({before.sha256, after.sha256, without.sha256}) == 3


def test_pieces_know_which_pictures_and_in_which_order(pictures):
    survey = look_at(pictures)
    assert [piece.rows for piece in survey.pieces()] == in_pieces(range(COUNT))
    assert [piece.rows for piece in survey.pieces([3, 9, 11])] == [(3, 9, 11)]
    digests = {survey.piece(rows).sha256 for rows in ([3, 9], [9, 3], [3], [9], [3, 9, 11])}
    assert len(digests) == 5
    # More pictures leave the whole pieces as they are; the last, shorter one is another.
    fewer = look_at(part_of(pictures, range(20)))
    assert fewer.pieces()[0] == survey.pieces()[0] and fewer.pieces()[1] != survey.pieces()[1]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (7, 11)])
def test_packed_masks_come_back(size):
    masks = np.random.default_rng(1).random((6, len(PIXEL_REGIONS), *size)) < 0.5
    packed = PackedMasks(np.packbits(masks.reshape(6, len(PIXEL_REGIONS), -1), axis=-1), *size)
    assert packed.shape == masks.shape
    assert packed.bits.nbytes == 6 * len(PIXEL_REGIONS) * -(-size[0] * size[1] // 8)
    for rows in (slice(None), slice(2, 4), slice(5, 6), slice(4, 99), slice(0, 0)):
        assert packed[rows].dtype == np.float32
        np.testing.assert_array_equal(packed[rows], masks[rows])


def test_masks_hold_the_pixels_that_are_covered_by_half(pictures):
    survey = look_at(pictures)
    assert survey.masks.shape == (COUNT, len(PIXEL_REGIONS), 10, 9)
    for place, name in enumerate(PIXEL_REGIONS):
        np.testing.assert_array_equal(survey.masks[:][:, place], pictures.masks[name] >= 0.5)
    assert look_at(replace(pictures, masks=None)).masks is None


@pytest.mark.parametrize("lots", [[40], [16, 16, 8], [1, 39], [5] * 8])
@pytest.mark.parametrize("without", [(), ("masks",), ("masks", "patch_labels")])
def test_joined_parts_are_the_whole(pictures, lots, without):
    pictures = replace(pictures, **dict.fromkeys(without))
    ends = np.cumsum(lots)
    parts = [look_at(part_of(pictures, range(end - size, end))) for end, size in zip(ends, lots, strict=True)]
    assert_same(joined(parts), look_at(pictures))


def test_parts_of_several_mean_pictures_are_refused(pictures):
    other = look_at(changed(pictures, "mean_image", (0, 0, 0), 1))
    with pytest.raises(ValueError, match="expected one mean picture"):
        joined([look_at(pictures), other])
