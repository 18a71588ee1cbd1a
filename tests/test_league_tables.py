"""The tables of a league from scores made by hand: what counts as a method of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import tiny_model

from analysis.intervals import bootstrap_indices
from analysis.league_tables import LEAGUE_TABLES, league_tables
from analysis.models import OpenedModel
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from attribution.methods import METHODS

NAMES = ("gate_ixg", "attention_ixg", "cls_mass", "layer_index")
SETTINGS = CompareSettings(methods=NAMES, bootstrap_replicates=60)


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(9, 3, 2))
    scores = {name: effects + rng.normal(size=effects.shape) for name in NAMES}
    scores["attention_ixg"] = 2 * scores["gate_ixg"]  # one method under two names
    truth = Truth("zero", effects, effects[..., None], np.ones(9))
    explained = SimpleNamespace(truths=(truth,), truth=truth, shapley=None, scores=scores)
    return league_tables(
        SETTINGS,
        OpenedModel(tiny_model(), "tiny", "0", is_control=True),
        explained,
        {name: METHODS[name] for name in NAMES},
        lambda count: bootstrap_indices(count, 60),
    )


def test_a_second_name_is_no_further_hypothesis(tables):
    league = tables["league"].set_index("method")
    assert league["same_as"].fillna("").to_dict() == dict.fromkeys(NAMES, "") | {"attention_ixg": "gate_ixg"}
    differences = tables["differences"].query("pictures == 'same'").set_index("method")
    assert "attention_ixg" not in differences.index and len(differences) == 2
    smallest = differences["p"].min()
    assert differences["p_holm"].min() == pytest.approx(min(1.0, 2 * smallest))  # two hypotheses, not three
    assert np.isnan(league.loc["attention_ixg", "p_holm"]) and np.isnan(league.loc["attention_ixg", "cross_p_holm"])


def test_every_table_has_its_name(tables):
    assert set(tables) <= set(LEAGUE_TABLES) and {"agreement", "league", "truths", "differences"} <= set(tables)
