"""Which figures of roles a run makes, and which heads and pictures they show."""

import numpy as np
import pandas as pd
import pytest
from test_roles import tables as tables
from toy_pictures import HEADS, toy_model, toy_source

from analysis.checks.twins import BY_NAME
from analysis.checks.twins_shown import INTACT, NAME, shown_pass
from analysis.models import make_batch
from analysis.role_figures import clearest, detectors_with_twins, role_figures
from data_synth import REGIONS
from data_synth.twins import without


@pytest.fixture(scope="module")
def shown():
    opened, source = toy_model(), toy_source(4)
    one = shown_pass(opened, source, list(BY_NAME.values()))
    return one.compute(make_batch(opened, source.draw(range(4))), [NAME], 2)[NAME]


def test_shown_twins_are_the_pictures_twins(shown):
    source = toy_source(4)
    for edit in BY_NAME.values():
        for row in range(4):
            twin = source.twin(edit, row)
            if twin is None:  # these pictures have neither frame nor background
                assert edit in (without("frame"), without("plot_background"))
                assert not shown[f"{edit}|image"][row].any()
                continue
            assert (shown[f"{edit}|image"][row] == twin.image).all()
            assert (shown[f"{edit}|labels"][row] == twin.patch_labels).all()
    assert (shown[f"{INTACT}|image"] == source.draw(range(4)).images).all()
    mass = shown["without(chirp)|map"][:, 0, HEADS["position"]][shown[f"{INTACT}|labels"] == REGIONS.index("colorbar")]
    assert mass.sum() > 2  # the position head goes on as before


def test_the_clearest_heads_are_those_with_a_role_about_the_concept(tables):
    roles, concepts = tables["roles"], tables["concepts"]
    assert clearest(roles, concepts, "chirp")[0] == (0, HEADS["chirp"], "chirp detector")
    assert clearest(roles, concepts, "text")[0] == (0, HEADS["text"], "text detector")
    assert clearest(roles, concepts, "colorbar")[0] == (0, HEADS["position"], "colorbar position prior")


def test_detectors_stand_beside_their_twins(tables, shown):
    figure = detectors_with_twins(tables["roles"], tables["concepts"], shown)
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert sum(title.startswith("intact") for title in titles) == 6  # two heads of each concept
    assert any(title.startswith("without chirp") for title in titles)
    rows = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert rows[0] == "L0H0 on chirp:\nchirp detector"
    share = {title.split(":")[0]: float(title.split(":")[1].rstrip(" %")) for title in titles[:3]}
    assert share["intact"] > 95 and share["chirp elsewhere"] > 95 and share["without chirp"] < 25


def test_nothing_is_shown_of_what_no_picture_has(tables, shown):
    blank = {name: np.zeros_like(values) for name, values in shown.items()}
    assert detectors_with_twins(tables["roles"], tables["concepts"], blank) is None


def test_figures_of_the_tables_there_are(tables, shown):
    scorecard = pd.DataFrame({"layer": [0] * 4, "head": range(4), "ablation_zero_var_pct": [1.0, 2.0, 0.1, 0.2]})
    scorecard["iou_chirp_adjusted"] = [0.9, 0.0, 0.1, 0.0]
    everything = {"roles": tables["roles"], "concepts": tables["concepts"], "head_scorecard": scorecard}
    names = [name for name, *_ in role_figures(everything, shown)]
    assert names == ["roles", "role_counts", "looks_at_against_matters_by_role", "detectors_with_twins"]
    assert [name for name, *_ in role_figures({}, None)] == []
    bare = {name: everything[name] for name in ("roles", "concepts")}
    assert [name for name, *_ in role_figures(bare, None)] == ["roles", "role_counts"]
