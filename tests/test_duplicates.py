"""Methods shown as one: against numpy's correlation matrix, and chains that are to stay apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.duplicates import duplicate_groups, similarity


def test_groups_are_found_in_order_on_shared_pictures():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 10, 3, 4))
    few = 5 + 2 * a[:4]  # another unit, on the first pictures alone
    scores = {"a": a, "b": b, "few": few, "against": -a, "near": b + 1e-5 * a, "flat": np.full_like(a, 0.1)}
    assert duplicate_groups(scores | {"flat_too": scores["flat"]}) == {
        "a": "a", "b": "b", "few": "a", "against": "against", "near": "b", "flat": "flat", "flat_too": "flat_too",
    }  # fmt: skip
    assert duplicate_groups(dict(reversed(scores.items())))["a"] == "few"
    assert duplicate_groups({}) == {}


def test_equal_means_alone_do_not_make_two_methods_one():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(8, 2, 3))
    b = a[::-1]  # the same mean over pictures, other scores per picture
    assert np.allclose(a.mean(0), b.mean(0)) and duplicate_groups({"a": a, "b": b})["b"] == "b"


@pytest.mark.parametrize("order", ["xyz", "yxz", "zyx"])
def test_no_chain_joins_what_is_not_alike(order):
    """y resembles x and z, which do not resemble each other: unit vectors at 0, 20 and 40 degrees."""
    drawn = np.random.default_rng(2).normal(size=(12, 2))
    basis = np.linalg.qr(np.column_stack([np.ones(12), drawn]))[0][:, 1:]  # orthonormal, both centred
    scores = {
        name: (basis @ [np.cos(np.deg2rad(at)), np.sin(np.deg2rad(at))]).reshape(2, 2, 3)
        for name, at in (("x", 0), ("y", 20), ("z", 40))
    }
    threshold = np.cos(np.deg2rad(30))
    assert similarity(scores["x"], scores["z"]) == pytest.approx(np.cos(np.deg2rad(40)))
    found = duplicate_groups({name: scores[name] for name in order}, threshold)
    expected = {"xyz": {"x": "x", "y": "x", "z": "z"}, "yxz": dict.fromkeys("xyz", "y"),
                "zyx": {"z": "z", "y": "z", "x": "x"}}[order]  # fmt: skip
    assert found == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_every_member_resembles_its_representative_and_representatives_no_earlier_one(seed, threshold):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(2, 4, 2, 3))
    scores = {str(i): rng.normal() * base[0] + rng.normal() * base[1] + 0.2 * rng.normal(size=(4, 2, 3))
              for i in range(7)}  # fmt: skip
    matrix = np.corrcoef([found.ravel() for found in scores.values()])
    groups = {int(a): int(b) for a, b in duplicate_groups(scores, threshold).items()}
    for name, other in groups.items():
        assert groups[other] == other and other <= name
        earlier = [one for one in range(name) if groups[one] == one]
        alike = [one for one in earlier if matrix[name, one] > threshold]
        assert other == (alike[0] if alike else name)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_the_unit_does_not_matter(scale):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4, 2, 3))
    assert similarity(scale * a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)
    assert np.isnan(similarity(np.full_like(a, scale / 3), b))


def test_refuses_other_heads_and_numbers_that_are_none():
    a = np.ones((2, 3, 4))
    for b in (np.ones((2, 3, 3)), np.ones((0, 3, 4)), np.full((2, 3, 4), np.nan)):
        with pytest.raises(ValueError, match="expected"):
            duplicate_groups({"a": a, "b": b})
