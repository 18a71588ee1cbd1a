import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis.stored_array import StoredArray


@pytest.fixture
def array():
    return np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)


@pytest.fixture
def stored(tmp_path, array):
    save_file({"maps": array, "other": np.zeros(2)}, tmp_path / "m.safetensors")
    return StoredArray(tmp_path / "m.safetensors", "maps")


def test_shape_and_length(stored):
    assert stored.shape == (5, 3, 4) and len(stored) == 5


@pytest.mark.parametrize(
    "index",
    [
        *(slice(None), slice(1, 3), slice(0, 0), slice(3, 99), slice(7, 9), slice(3, 1), slice(-2, None)),
        *(slice(None, -1), slice(None, None, 2), slice(1, 5, 3)),
        *(0, 4, (2,), (2, 1), (2, 1, 3), (2, slice(1, 3)), (slice(1, 3), 1), (slice(1, 3), slice(None), [0, 2])),
        *((3, ..., 1), (slice(2, 99), 0, 1)),
    ],
    ids=str,
)
def test_it_is_indexed_as_the_array_is(stored, array, index):
    found = stored[index]
    np.testing.assert_array_equal(found, array[index])
    assert found.dtype == array.dtype


def test_pictures_one_after_another(stored, array):
    np.testing.assert_array_equal(np.stack([stored[row] for row in range(len(stored))]), array)
    np.testing.assert_array_equal(np.stack(list(stored)), array)


@pytest.mark.parametrize("number", [np.int64(4), -1, -5])
def test_any_whole_number_is_a_picture(stored, array, number):
    np.testing.assert_array_equal(stored[number], array[number])
    np.testing.assert_array_equal(stored[number, 2], array[number, 2])


@pytest.mark.parametrize("number", [5, -6])
def test_there_is_no_picture_beyond_the_last(stored, number):
    with pytest.raises(IndexError):
        stored[number]


def test_it_follows_the_file(stored, array):
    save_file({"maps": array[:2] + 1}, stored.path)
    assert len(stored) == 2
    np.testing.assert_array_equal(stored[:], array[:2] + 1)
