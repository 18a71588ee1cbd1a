"""Twin statistics of heads whose behaviour is known: content, position, and halfway between."""

import numpy as np
import pytest

from analysis.intervals import bootstrap_indices
from analysis.twin_effects import COLUMNS, EDITS, LEAST_EXCESS, statistic_parts, twin_table

IMAGES = 12
RNG = np.random.default_rng(2)
LIFT = RNG.uniform(4, 8, (IMAGES, 1, 1))  # on the thing; elsewhere 0.5
INDICES = bootstrap_indices(IMAGES, 200)


def lifts(content):
    """A head that looks at the thing where it is with weight `content`, at its old place with the rest."""
    mixed = content * 0.5 + (1 - content) * LIFT
    moved = content * LIFT + (1 - content) * 0.5
    return {"old_before": LIFT, "old_after": mixed, "new_before": np.full_like(LIFT, 0.5), "new_after": moved}


def value_of(concept, edit, content):
    found = twin_table({(concept, edit): lifts(content)}, INDICES, model="finetuned", query="cls")
    return found.iloc[0]


@pytest.mark.parametrize("content", [0.0, 0.25, 0.5, 1.0])
def test_follow_is_the_weight_of_content(content):
    row = value_of("chirp", "chirp_elsewhere", content)
    assert row["statistic"] == "follow" and row["value"] == pytest.approx(content)
    assert row["ci_low"] - 1e-9 <= content <= row["ci_high"] + 1e-9 and row["n"] == IMAGES


@pytest.mark.parametrize("content", [0.0, 0.5, 1.0])
def test_let_go_by_arithmetic(content):
    found = lifts(content)
    expected = (found["old_before"] - found["old_after"]).sum() / (found["old_before"] - 1).sum()
    row = value_of("text", "without(text)", content)
    assert row["statistic"] == "let_go" and row["value"] == pytest.approx(expected)
    assert row["value"] == (0 if content == 0 else pytest.approx(expected))


def test_keep_is_one_where_nothing_changes():
    same = {"old_before": LIFT, "old_after": LIFT, "new_before": LIFT * np.nan, "new_after": LIFT * np.nan}
    row = twin_table({("text", "replace(text)"): same}, INDICES, model="finetuned", query="cls").iloc[0]
    assert (row["statistic"], row["value"], row["ci_low"], row["ci_high"]) == ("keep", 1.0, 1.0, 1.0)


def test_a_head_that_does_not_look_has_none():
    weak = {name: np.full((IMAGES, 1, 2), 1.2) for name in lifts(0)}
    found = twin_table({("text", "without(text)"): weak}, INDICES, model="finetuned", query="cls")
    assert found[["value", "ci_low", "ci_high"]].isna().all(axis=None) and (found["n"] == IMAGES).all()


def test_pictures_without_the_thing_are_left_out():
    found = {name: values.copy() for name, values in lifts(0.5).items()}
    for values in found.values():
        values[::3] = np.nan
    row = twin_table({("colorbar", "move(colorbar)"): found}, INDICES, model="m", query="mean").iloc[0]
    assert row["n"] == IMAGES - 4 and row["value"] == pytest.approx(0.5)


def test_table_has_a_row_for_every_head_and_edit():
    shape = np.ones((1, 3, 2))
    every = {(concept, edit): {name: values * shape for name, values in lifts(1.0).items()}
             for concept, edits in EDITS.items() for edit in edits}  # fmt: skip
    found = twin_table(every, INDICES, model="finetuned", query="cls")
    assert tuple(found.columns) == COLUMNS and len(found) == 6 * sum(map(len, EDITS.values()))
    assert twin_table({}, INDICES, model="m", query="cls").empty


@pytest.mark.parametrize(("edit", "least"), [("without(text)", 0.5), ("move(title)", 1.0)])
def test_a_head_that_looks_just_as_little_as_is_left_out_has_none(edit, least):
    """The excess of a following twin is twice that of two places; at the bound itself there is no statistic."""
    values = {"old_before": 1 + LEAST_EXCESS, "old_after": 1.0, "new_before": 1.0, "new_after": 1.5}
    for more, known in ((0.0, False), (0.01, True)):
        one = {name: np.full((IMAGES, 1, 1), value + more * (name == "old_before")) for name, value in values.items()}
        excess = statistic_parts(EDITS["text"][edit], one)[1]
        assert (excess[0, 0, 0] == least) is not known
        row = twin_table({("text", edit): one}, INDICES, model="m", query="cls").iloc[0]
        assert np.isfinite(row["value"]) == known


def test_unknown_statistic():
    with pytest.raises(ValueError, match="let_go, follow, keep"):
        statistic_parts("nonsense", lifts(0))
