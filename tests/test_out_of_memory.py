"""Half as many pictures at a time where memory does not suffice: the same numbers, one line a time, an end at one."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from analysis.out_of_memory import BatchSize, compute_fitting, is_out_of_memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it."),
    MemoryError(),
    MemoryError("Unable to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA out of memory."),
]


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(tiny_model(), num_images=13)


class Limited:
    """Per picture its number and mean; raises `error` for more than `most` pictures. `sizes` are those it was given."""

    def __init__(self, most, error):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, part, size):
        self.sizes.append((len(part), size))
        if len(part) > self.most:
            raise self.error
        means = part.pixel_values.mean(dim=(1, 2, 3)).numpy()
        return {"a": {"number": part.indices.numpy(), "mean": means}, "b": {"row": part.labels.numpy()}}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for outer, arrays in expected.items():
        assert found[outer].keys() == arrays.keys()
        for key, values in arrays.items():
            np.testing.assert_array_equal(found[outer][key], values)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_the_size_is_halved_until_it_fits_and_remembered(batch, error, capsys):
    expected = Limited(99, error)(batch, 16)
    size, limited = BatchSize(16), Limited(5, error)
    assert_same(compute_fitting(limited, batch, size, "gate_ig"), expected)
    assert size.pictures == 4
    # Sixteen at a time: all 13 at once. What fits after a failure is computed for the whole batch.
    assert limited.sizes == [(13, 16), (8, 8), (4, 4), (4, 4), (4, 4), (1, 4)]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"warning: gate_ig: out of memory, going on with {number} pictures at a time" for number in (8, 4)
    ]
    limited.sizes.clear()
    assert_same(compute_fitting(limited, batch, size, "chefer"), expected)
    assert limited.sizes == [(4, 4), (4, 4), (4, 4), (1, 4)] and size.pictures == 4
    assert capsys.readouterr().err == ""


def test_a_failure_at_the_last_pictures_starts_the_batch_again(batch, capsys):
    calls = []

    def compute(part, size):
        calls.append(part.indices.tolist())
        if len(calls) == 4:
            raise MemoryError
        return {"a": {"number": part.indices.numpy()}}

    found = compute_fitting(compute, batch, BatchSize(4), "a")["a"]["number"]
    np.testing.assert_array_equal(found, batch.indices.numpy())
    assert calls[3] == [22] and calls[4] == [10, 11] and len(calls) == 4 + 7
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", OUT_OF_MEMORY[:4], ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_one_picture_that_does_not_fit_is_refused(batch, error, capsys):
    size, limited = BatchSize(5), Limited(0, error)
    reason = str(error).splitlines()[0] if str(error) else "MemoryError"
    with pytest.raises(OSError) as refused:
        compute_fitting(limited, batch, size, "ablation_zero")
    assert str(refused.value) == f"ablation_zero: not enough memory for one picture at a time ({reason})"
    assert [number for _, number in limited.sizes] == [5, 2, 1] and size.pictures == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("not enough memory"), OSError("x")]
)
def test_other_errors_pass_through(batch, error, capsys):
    size = BatchSize(16)
    with pytest.raises(type(error)) as raised:
        compute_fitting(Limited(5, error), batch, size, "a")
    assert raised.value is error and size.pictures == 16 and not is_out_of_memory(error)
    assert capsys.readouterr().err == ""


def test_memory_that_truly_does_not_suffice_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(raised.value)


def test_with_memory_enough_nothing_is_said_and_nothing_changes(batch, capsys):
    size, limited = BatchSize(13), Limited(13, MemoryError())
    compute_fitting(limited, batch, size, "a")
    assert limited.sizes == [(13, 13)] and size.pictures == 13 and capsys.readouterr().err == ""
