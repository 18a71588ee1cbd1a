"""Roles by rule, from tables written by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis.role_rules import COLUMNS, detected, judged, role_counts, role_table

CONTENT, POSITION, UNSURE = (0.9, 0.8, 1.0), (0.1, 0.0, 0.3), (0.5, 0.3, 0.7)


def concept(name, share=0.0, lift=0.5, q=1.0, p=0.5, n=20):
    return {"layer": 0, "head": 0, "model": "finetuned", "query": "cls", "concept": name, "lift": lift, "n": n, "p": p,
            "q_value": q} | {f"share_above_{tau}": share for tau in (2, 3, 5)}  # fmt: skip


def twin(name, edit, statistic, limits, n=20):
    row = {"layer": 0, "head": 0, "model": "finetuned", "query": "cls", "concept": name, "edit": edit}
    limits = dict(zip(("value", "ci_low", "ci_high"), limits, strict=True))
    return row | {"statistic": statistic, "n": n} | limits


def twins_of(name, *, removed=CONTENT, moved=CONTENT, kept=CONTENT, grey=CONTENT):
    if name == "chirp":
        rows = [twin(name, "chirp_elsewhere", "follow", moved), twin(name, "without(chirp)", "let_go", removed)]
    elif name == "colorbar":
        rows = [twin(name, "move(colorbar)", "follow", moved), twin(name, "without(colorbar)", "let_go", removed)]
    elif name in ("edge", "corner"):
        rows = [
            twin(name, "without(frame)", "let_go", removed),
            twin(name, "without(plot_background)", "let_go", removed),
            twin(name, "grey(text)", "let_go", grey),
            twin(name, "move(colorbar)", "follow", moved),
        ]
    else:
        rows = [
            twin(name, "without(text)", "let_go", removed),
            twin(name, "replace(text)", "keep", kept),
            twin(name, "grey(text)", "let_go", grey),
            twin(name, "move(title)", "follow", moved),
        ]
    return rows


NO_TWINS = pd.DataFrame(
    columns=["layer", "head", "model", "query", "concept", "edit", "statistic", "value", "ci_low", "ci_high", "n"]
)


def role(concepts, twins=(), tau=3.0):
    table = pd.DataFrame(list(twins)) if twins else NO_TWINS
    found = role_table(pd.DataFrame(concepts), table, (tau,))
    assert len(found) == 1 and tuple(found.columns) == COLUMNS
    return found.iloc[0]


SEEN = {"share": 0.9, "lift": 6.0, "q": 0.01}


def test_a_detector_of_one_concept():
    found = role([concept("chirp", **SEEN), concept("text"), concept("edge")], twins_of("chirp"))
    assert (found["semanticity"], found["concepts"], found["role"]) == ("monosemantic", "chirp", "chirp detector")
    assert found["evidence"] == 0.9 and found["n"] == 20


@pytest.mark.parametrize("other", [POSITION, UNSURE])
@pytest.mark.parametrize("which", ["removed", "moved"])
def test_twins_that_say_stay_make_a_position_prior(which, other):
    told = dict.fromkeys(("removed", "moved"), other) | {which: POSITION}
    found = role([concept("colorbar", **SEEN)], twins_of("colorbar", **told))
    assert found["role"] == "colorbar position prior" and found["evidence"] == 0.1
    text = twins_of("text", removed=POSITION, grey=POSITION, kept=(0.05, 0.0, 0.2))
    found = role([concept("text", **SEEN)], text)  # no box about it; what is kept says nothing of the place
    assert found["role"] == "text position prior" and found["evidence"] == 0.1


@pytest.mark.parametrize("which", ["removed", "moved"])
def test_twins_that_contradict_each_other_decide_nothing(which):
    found = role([concept("colorbar", **SEEN)], twins_of("colorbar", **{which: POSITION}))
    assert found["role"] == "colorbar (undecided)"


def test_limits_on_both_sides_leave_it_open():
    assert role([concept("chirp", **SEEN)], twins_of("chirp", moved=UNSURE))["role"] == "chirp (undecided)"
    blind = [
        twin("chirp", "chirp_elsewhere", "follow", CONTENT),
        twin("chirp", "without(chirp)", "let_go", (np.nan,) * 3),
    ]
    assert role([concept("chirp", **SEEN)], blind)["role"] == "chirp (undecided)"


def test_concepts_without_twins_stay_untested():
    assert role([concept("chirp", **SEEN)])["role"] == "chirp (untested)"  # the pictures of a folder
    assert role([concept("sink", **SEEN)])["role"] == "sink (untested)"
    assert role([concept("edge", **SEEN), concept("chirp")])["verdict"] == "untested"  # nothing could be taken out


@pytest.mark.parametrize("name", ["edge", "corner"])
def test_edges_and_corners_are_judged_by_those_that_are_taken_out(name):
    seen = [concept(name, **SEEN)]
    assert role(seen, twins_of(name))["role"] == f"{name} detector"
    assert role(seen, twins_of(name, removed=POSITION))["role"] == f"{name} position prior"
    assert role(seen, twins_of(name, removed=UNSURE))["role"] == f"{name} (undecided)"
    beside = twins_of(name, grey=POSITION, moved=POSITION)  # what stands beside text and bar is reported only
    assert role(seen, beside)["role"] == f"{name} detector"
    frame, background, *others = twins_of(name)
    mixed = [frame, background | dict(zip(("value", "ci_low", "ci_high"), POSITION, strict=True)), *others]
    assert role(seen, mixed)["role"] == f"{name} (undecided)"
    assert role(seen, others)["role"] == f"{name} (untested)"


def test_a_head_need_not_look_at_every_edge():
    """A twin takes out a part of them; of a thing that has a name it takes out all, and there silence is no yes."""
    blind = (np.nan,) * 3
    frame, background, *_ = twins_of("edge")
    unseen = frame | dict(zip(("value", "ci_low", "ci_high"), blind, strict=True))
    assert judged("edge", pd.DataFrame([unseen, background]))[0] == "detector"
    assert judged("edge", pd.DataFrame([unseen]))[0] == "undecided"
    assert judged("colorbar", pd.DataFrame(twins_of("colorbar", moved=blind)))[0] == "undecided"


def test_twins_of_fewer_than_five_pictures_say_nothing():
    def edges(n):
        return [twin("edge", "without(plot_background)", "let_go", CONTENT),
                twin("edge", "without(frame)", "let_go", POSITION, n=n)]  # fmt: skip

    seen = [concept("edge", **SEEN)]
    assert role(seen, edges(4))["role"] == "edge detector"
    assert role(seen, edges(5))["role"] == "edge (undecided)"
    assert role(seen, edges(4)[1:])["role"] == "edge (untested)"
    assert role(seen, edges(0)[1:])["role"] == "edge (untested)"


def test_roles_at_the_thresholds_themselves():
    """Lifts and shares of pictures include their thresholds; q, chance and a half of content do not."""
    at = {"share": 0.8, "lift": 3.0, "q": 0.049, "n": 5}
    assert role([concept("chirp", **at)], twins_of("chirp"))["role"] == "chirp detector"
    assert role([concept("chirp", **(at | {"share": 0.8 - 1e-9}))])["role"] == "diffuse"
    assert role([concept("chirp", **(at | {"n": 4}))])["role"] == "diffuse"
    assert role([concept("chirp", **(at | {"q": 0.05}))], twins_of("chirp"))["semanticity"] == "positional"
    assert detected(pd.DataFrame([concept("chirp", **at), concept("chirp", **(at | {"q": 0.05}))]), 3.0).tolist() == [
        *(True, False),
    ]
    for limits, expected in (
        ((0.9, 0.5, 1.0), "undecided"),  # a lower limit of a half is not above it
        ((0.9, np.nextafter(0.5, 1), 1.0), "detector"),
        ((0.1, 0.0, 0.5), "undecided"),  # nor an upper one below
        ((0.1, 0.0, np.nextafter(0.5, 0)), "position prior"),
    ):
        assert judged("chirp", pd.DataFrame(twins_of("chirp", removed=limits, moved=limits)))[0] == expected
    half_follows = twins_of("chirp", removed=POSITION, moved=(0.9, 0.5, 1.0))
    assert judged("chirp", pd.DataFrame(half_follows))[0] == "position prior"  # nothing contradicts it
    inked = twins_of("text", grey=(0.1, 0.0, 0.5))
    assert role([concept("text", **SEEN)], inked)["role"] == "text detector"
    assert role([concept("text", **SEEN)], twins_of("text", grey=(0.1, 0.0, 0.49)))["role"] == "text box detector"


@pytest.mark.parametrize(("lift", "q", "semanticity"), [
    (0.5, 0.001, "monosemantic"),  # surely less than chance
    (1.0, 0.001, "monosemantic"),  # chance itself attracts nothing
    (np.nextafter(1.0, 2), 0.001, "unclassified"),
    (1.4, 0.05, "monosemantic"),  # not surely
    (1.4, 0.0499, "unclassified"),
])  # fmt: skip
def test_what_attracts_lies_above_chance(lift, q, semanticity):
    found = role([concept("chirp", **SEEN), concept("text", lift=lift, q=q)], twins_of("chirp"))
    assert found["semanticity"] == semanticity
    still = role([concept("chirp", **SEEN), concept("text", lift=lift, q=np.nan, p=np.nan)], twins_of("chirp"))
    assert still["semanticity"] == ("unclassified" if lift > 1 else "monosemantic")


def test_text_or_its_box():
    seen = [concept("text", **SEEN)]
    assert role(seen, twins_of("text"))["role"] == "text detector"
    assert role(seen, twins_of("text", grey=POSITION))["role"] == "text box detector"
    assert role(seen, twins_of("text", kept=POSITION))["role"] == "text (undecided)"  # certain letters, not text
    assert role(seen, twins_of("text", moved=POSITION))["role"] == "text detector"  # titles are reported only


def test_semanticity():
    two = [concept("chirp", **SEEN), concept("text", **SEEN, n=12)]
    found = role(two, twins_of("chirp"))
    assert (found["semanticity"], found["concepts"], found["role"], found["n"]) == (
        *("polysemantic", "chirp;text", "polysemantic", 12),
    )
    drawn = [concept("chirp", **SEEN), concept("edge", lift=1.4, q=0.01)]
    found = role(drawn, twins_of("chirp"))
    assert found["semanticity"] == "unclassified" and found["role"] == "chirp detector, among others"
    assert role([concept("chirp", share=0.79, lift=9.0, q=0.001)])["semanticity"] == "diffuse"


def test_where_the_thing_tends_to_be():
    """High lifts that do not follow the picture's own mask are position, whatever else."""
    found = role(
        [concept("colorbar", share=0.9, lift=7.0, q=0.4)], twins_of("colorbar", moved=POSITION, removed=POSITION)
    )
    assert (found["semanticity"], found["role"]) == ("positional", "colorbar position prior")
    found = role([concept("chirp", share=0.9, lift=7.0, q=0.4)], twins_of("chirp"))
    assert (found["semanticity"], found["role"]) == ("positional", "chirp (undecided)")  # never a detector


def test_a_place_that_never_moves_is_left_to_twins():
    still = {"share": 0.9, "lift": 7.0, "q": np.nan, "p": np.nan}
    found = role([concept("text", **still)], twins_of("text")[:1])  # nothing else can be done to a fixed figure
    assert (found["semanticity"], found["role"]) == ("position fixed", "text detector")
    stays = twins_of("text", removed=POSITION)[:1]
    assert role([concept("text", **still)], stays)["role"] == "text position prior"
    beside = role([concept("chirp", **SEEN), concept("text", **still)], twins_of("chirp"))
    assert beside["semanticity"] == "unclassified"  # what cannot be tested may still attract


def test_a_concept_in_hardly_any_picture_is_no_concept():
    """The permutation cannot reject there, nor can it be fixed."""
    rare = {"share": 1.0, "lift": 40.0, "q": np.nan, "p": np.nan, "n": 1}
    assert role([concept("sink", **rare)])["role"] == "diffuse"
    found = role([concept("chirp", **SEEN), concept("sink", **rare)], twins_of("chirp"))
    assert found["semanticity"] == "monosemantic"


def test_finer_regions_are_no_concepts():
    assert role([concept("title", **SEEN), concept("text")])["role"] == "diffuse"


def test_taus_are_read_from_their_own_columns():
    row = concept("chirp", **SEEN) | {"share_above_2": 0.9, "share_above_3": 0.81, "share_above_5": 0.5}
    found = role_table(pd.DataFrame([row]), pd.DataFrame(twins_of("chirp")))
    assert found.set_index("tau")["semanticity"].to_dict() == {2.0: "monosemantic", 3.0: "monosemantic", 5.0: "diffuse"}
    assert detected(pd.DataFrame([row]), 5.0).tolist() == [False]


def test_counts_add_up():
    heads = [concept("chirp", **SEEN) | {"head": head} for head in range(3)] + [concept("chirp") | {"head": 3}]
    found = role_counts(role_table(pd.DataFrame(heads), NO_TWINS))
    at_three = found[found["tau"] == 3.0].set_index("role")
    assert at_three["heads"].to_dict() == {"chirp (untested)": 3, "diffuse": 1}
    assert at_three["share"].to_dict() == {"chirp (untested)": 0.75, "diffuse": 0.25}


def test_evidence_is_what_speaks_least():
    verdict, evidence = judged("chirp", pd.DataFrame(twins_of("chirp", moved=(0.7, 0.6, 0.8))))
    assert verdict == "detector" and evidence == {"evidence": 0.7, "evidence_low": 0.6, "evidence_high": 0.8}
