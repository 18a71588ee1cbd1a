"""Where the rules of roles are on the edge: hardly enough pictures, and several candidates."""

import numpy as np
import pandas as pd
import pytest
from test_role_rules import CONTENT, POSITION, SEEN, concept, role, twins_of


@pytest.mark.parametrize("query", ["rejects", "cannot reject"])
def test_five_pictures_are_enough_and_four_are_not(query):
    """Detected or, where the thing never moves, looked at: both take five pictures that show it."""
    told = {"q": 0.01} if query == "rejects" else {"q": np.nan, "p": np.nan}
    seen = {"share": 0.9, "lift": 6.0} | told
    found = role([concept("chirp", **seen, n=5)], twins_of("chirp"))
    assert found["semanticity"] == ("monosemantic" if query == "rejects" else "position fixed") and found["n"] == 5
    assert role([concept("chirp", **seen, n=4)], twins_of("chirp"))["semanticity"] == "diffuse"
    # Beside a concept that is detected, one of the same lift attracts too, from five pictures on where it never moves.
    others = [concept("chirp", **SEEN), concept("text", lift=2.0, q=np.nan, p=np.nan, n=5)]
    assert role(others, twins_of("chirp"))["semanticity"] == "unclassified"
    others[1]["n"] = 4
    assert role(others, twins_of("chirp"))["semanticity"] == "monosemantic"


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_without_detection_that_of_the_highest_lift_names_the_head(order):
    """Whatever the order of rows; its own twins judge it, and its own pictures are counted."""
    rows = [
        concept("text", share=0.9, lift=5.0, q=0.4, n=9),
        concept("colorbar", share=0.9, lift=7.0, q=0.4, n=8),
        concept("chirp", share=0.1, lift=9.0, q=0.4, n=20),  # not looked at in enough of its pictures
    ]
    twins = [*twins_of("text"), *twins_of("colorbar", moved=POSITION, removed=POSITION), *twins_of("chirp")]
    found = role(rows[::order], twins)
    assert (found["concepts"], found["role"], found["n"]) == ("colorbar", "colorbar position prior", 8)


@pytest.mark.parametrize("order", [1, -1])
def test_evidence_is_the_least_whatever_the_order_of_edits(order):
    twins = twins_of("chirp", moved=(0.7, 0.6, 0.8), removed=(0.9, 0.8, 1.0))[::order]
    found = role([concept("chirp", **SEEN)], twins)
    assert (found["verdict"], found["evidence"], found["evidence_low"]) == ("detector", 0.7, 0.6)
    stays = twins_of("chirp", moved=(0.3, 0.2, 0.4), removed=(0.1, 0.0, 0.2))[::order]
    found = role([concept("chirp", **SEEN)], stays)
    assert (found["verdict"], found["evidence"], found["evidence_high"]) == ("position prior", 0.1, 0.2)


def test_a_twin_without_an_interval_leaves_it_open():
    twins = pd.DataFrame(twins_of("chirp"))
    twins.loc[0, ["ci_low", "ci_high"]] = np.nan
    found = role([concept("chirp", **SEEN)], twins.to_dict("records"))
    assert found["role"] == "chirp (undecided)" and found["evidence"] == CONTENT[0]


def test_a_diffuse_head_counts_the_pictures_of_the_concept_that_most_contain():
    found = role([concept("text", n=12), concept("chirp", n=30), concept("edge", n=7)], twins_of("text"))
    assert (found["role"], found["n"]) == ("diffuse", 30)
