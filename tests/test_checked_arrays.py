"""Arrays on disk that say what they must be."""

import numpy as np
import pytest
from safetensors.numpy import save

from analysis.checked_arrays import arrays_sha256, read_checked, write_checked

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], dtype=np.int64)}


def test_there_and_back(tmp_path):
    path = write_checked(tmp_path / "x.safetensors", ARRAYS, "mine")
    found = read_checked(path, "mine")
    assert set(found) == set(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert read_checked(path, "another") is None and read_checked(tmp_path / "y.safetensors") is None
    before = path.read_bytes()
    assert write_checked(path, dict(reversed(ARRAYS.items())), "mine").read_bytes() == before


@pytest.mark.parametrize("place", [-1, -9, -20, -40])
def test_a_flipped_bit_is_seen(tmp_path, place):
    path = write_checked(tmp_path / "x.safetensors", ARRAYS)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(bytes(content))
    assert read_checked(path) is None


@pytest.mark.parametrize("content", [b"", b"nothing", save(ARRAYS)])
def test_what_is_no_file_of_this_make(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert read_checked(tmp_path / "x.safetensors") is None


def test_the_digest_is_of_names_types_shapes_and_numbers():
    changed = [
        ARRAYS | {"a": ARRAYS["a"].astype(np.int32)},
        ARRAYS | {"b": ARRAYS["b"].reshape(3, 2)},
        ARRAYS | {"b": ARRAYS["b"] + np.float32(1e-6)},
        {"c" if name == "a" else name: values for name, values in ARRAYS.items()},
        {"a": ARRAYS["a"]},
        ARRAYS,
    ]
    assert len({arrays_sha256(one) for one in changed}) == len(changed)
