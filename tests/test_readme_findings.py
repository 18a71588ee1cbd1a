"""Every sentence of README's results is made here from the tables it names, and there is no other."""

import re
from pathlib import Path

import findings_of_heads as heads
import findings_of_methods as methods
import findings_of_the_study as study
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
STUDY = (
    study.which_models,
    study.order_of_scenarios,
    study.fault_by_fault,
    study.wrong_units,
    study.one_picture,
    study.irrelevant_heads,
    study.maps_as_released,
)
HEADS = (
    heads.what_they_rest_on, heads.the_model, heads.replacements, heads.shapley, heads.looking, heads.hiding,
    heads.what_heads_are, heads.fine_tuning, heads.in_depth, heads.looking_at_text, heads.together,
    methods.other_pictures_and_tunings, methods.the_other_task,
)  # fmt: skip
METHODS = (
    methods.which_rank_best, methods.the_first_ten, methods.depth, methods.what_is_explained, methods.in_units,
    methods.attention_alone, methods.price, methods.another_question, methods.completeness, methods.known_answers,
    methods.never_learnt, methods.settings, methods.one_after_the_other, methods.many_at_once, methods.fine_tunings,
    methods.what_would_change_this,
)  # fmt: skip
ELSEWHERE = (study.covers, study.estimates_cost, study.the_sweep)


def plain(text):
    return " ".join(text.split())


def section(name):
    """Between a heading and the next one."""
    return README.split(f"\n### {name}\n", 1)[1].split("\n## ")[0].split("\n### ")[0]


@pytest.mark.parametrize("finding", [*STUDY, *HEADS, *METHODS, *ELSEWHERE], ids=lambda finding: finding.__name__)
def test_a_finding_is_written_as_its_tables_give_it(finding):
    assert plain(finding()) in plain(README)


@pytest.mark.parametrize(("name", "findings"), [("Heads", HEADS), ("Methods", METHODS)])
def test_there_are_no_other_findings(name, findings):
    """What is left of a section is figures, the table of methods with what it says of itself, and nothing more."""
    left = plain(re.sub(r"!\[[^\]]*\]\([^)]*\)", "", section(name)))
    for finding in findings:
        left = left.replace(plain(finding()), "", 1)
    if name == "Methods":
        left = left[: left.index("**Which method would have told**")] + left[left.rindex("|") + 1 :]
    assert not left.replace("-", "").split(), left
