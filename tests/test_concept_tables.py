"""Lifts of concepts against sums written out, and the same numbers as the localization table."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from analysis.concept_tables import COLUMNS, concept_masses, concept_table
from analysis.intervals import bootstrap_indices
from analysis.localization import lift
from analysis.nulls import permutation_null

RNG = np.random.default_rng(5)
MAPS = RNG.random((7, 2, 3, 4, 4)) ** 3
MASKS = {name: RNG.random((7, 4, 4)) < share for name, share in (("one", 0.3), ("two", 0.2), ("part", 0.4))}
MASKS["two"][2] = False  # a picture without it
INDICES = bootstrap_indices(7, 50)


@pytest.fixture(scope="module")
def table():
    return concept_table(
        MAPS, MASKS | {"absent": np.zeros((7, 4, 4), dtype=bool)}, ("one", "two"), INDICES,
        model="finetuned", query="cls", seed=0, num_permutations=99,
    )  # fmt: skip


def test_masses_by_loops():
    own, others = concept_masses(MAPS, MASKS)
    shares = MAPS / MAPS.sum(axis=(3, 4), keepdims=True)
    for place, mask in enumerate(MASKS.values()):
        for image in range(7):
            rest = np.delete(shares, image, axis=0).mean(axis=0)
            for number, (layer, head) in enumerate(np.ndindex(2, 3)):
                assert own[place, image, number] == pytest.approx(shares[image, layer, head][mask[image]].sum())
                assert others[place, image, number] == pytest.approx(rest[layer, head][mask[image]].sum())


def test_lift_is_that_of_localization(table):
    for name, mask in MASKS.items():
        expected = lift(MAPS, mask)
        rows = table[table["concept"] == name]
        assert rows["lift"].to_numpy() == pytest.approx(np.nanmean(expected, axis=0).ravel())
        share = np.nanmean(np.where(np.isnan(expected), np.nan, expected >= 2), axis=0).ravel()
        assert rows["share_above_2"].to_numpy() == pytest.approx(share)
        assert (rows["n"] == mask.any(axis=(1, 2)).sum()).all()


def test_a_lift_of_the_threshold_itself_counts():
    """Twelve of sixteen patches at 1 and four at 9: a lift of exactly 3 on the four."""
    maps, mask = np.ones((4, 1, 1, 4, 4)), np.zeros((4, 4, 4), dtype=bool)
    maps[..., 0, :], mask[:, 0] = 9.0, True
    found = concept_table(
        maps, {"one": mask}, ("one",), bootstrap_indices(4, 20), model="m", query="cls", seed=0, num_permutations=19
    )
    assert found["lift"].tolist() == [3.0]
    assert found[["share_above_2", "share_above_3", "share_above_5"]].to_numpy().tolist() == [[1.0, 1.0, 0.0]]


def test_tests_are_one_family_of_the_tested_concepts(table):
    assert table.loc[table["concept"] == "part", ["p", "q_value"]].isna().all(axis=None)
    tested = table[table["concept"] != "part"]
    for name in ("one", "two"):
        expected = permutation_null(MAPS, MASKS[name], seed=0, num_permutations=99).p.ravel()
        assert tested.loc[tested["concept"] == name, "p"].tolist() == expected.tolist()
    assert tested["q_value"].to_numpy() == pytest.approx(false_discovery_control(tested["p"]))


def test_order_and_columns(table):
    assert tuple(table.columns) == COLUMNS and "absent" not in set(table["concept"])
    assert table["concept"].tolist() == ["one", "two", "part"] * 6
    assert list(zip(table["layer"], table["head"], strict=True))[::3] == list(np.ndindex(2, 3))


def test_a_map_that_is_always_the_same_has_the_lift_of_its_position():
    maps = np.tile(RNG.random((1, 1, 1, 4, 4)), (7, 1, 1, 1, 1))
    found = concept_table(maps, MASKS, ("one",), INDICES, model="finetuned", query="cls", seed=0, num_permutations=99)
    assert found["lift_position"].to_numpy() == pytest.approx(found["lift"].to_numpy())


def test_one_picture_has_no_others():
    own, others = concept_masses(MAPS[:1], {"one": MASKS["one"][:1]})
    assert np.isfinite(own).all() and np.isnan(others).all()
