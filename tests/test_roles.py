"""Roles from pictures: heads wired by hand are named right, random maps are named nothing."""

import numpy as np
import pandas as pd
import pytest
from check_evidence import computed
from toy_pictures import COUNT, HEADS, toy_model, toy_source

from analysis.checks import claims, concepts, role_halves, roles, twins
from analysis.checks.evidence import Evidence
from analysis.concept_masks import CONCEPTS, NAMED, concept_masks, drawn_masks
from analysis.concept_tables import concept_table
from analysis.intervals import bootstrap_indices
from analysis.pictures import open_pictures
from analysis.role_rules import role_table
from analysis.scorecard import Truth
from analysis.settings import CompareSettings
from analysis.twin_effects import COLUMNS as TWIN_COLUMNS
from analysis.verdict_rules import CONFIRMED, KAPPA, POLYSEMANTIC
from attribution.heads import attention_maps
from data_synth import TARGET_NAMES

SETTINGS = CompareSettings(num_permutations=999, bootstrap_replicates=300)


@pytest.fixture(scope="module")
def tables():
    opened, source = toy_model(), toy_source()
    found = {}
    for check in (concepts, twins):
        found |= computed(opened, source, SETTINGS, check.passes(opened, source, SETTINGS, {}, {}))
    pictures = source.draw(range(COUNT))
    maps = attention_maps(opened.model, opened.model.preprocess(pictures.images).double()).maps
    truth = Truth("zero", np.zeros((COUNT, 1, 4)), np.zeros((COUNT, 1, 4, 2)), np.ones(COUNT))
    made = {}
    checks = {"concepts": concepts, "twins": twins, "roles": roles, "role_halves": role_halves, "claims": claims}
    for name, check in checks.items():
        evidence = Evidence(
            opened,
            source,
            SETTINGS,
            {},
            {},
            truth,
            {},
            lambda count: bootstrap_indices(count, 300),
            found.__getitem__,
            {query: one.numpy() for query, one in maps.items()},
            pictures.patch_labels,
            dict(made),
        )
        made[name] = check.table(evidence)
    return made


@pytest.mark.parametrize("tau", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("query", ["cls", "mean"])
def test_wired_heads_are_named_right(tables, query, tau):
    found = tables["roles"]
    found = found[(found["query"] == query) & (found["tau"] == tau)].set_index("head")["role"]
    expected = {"chirp": "chirp detector", "text": "text detector", "position": "colorbar position prior"}
    assert found.to_dict() == {HEADS[name]: role for name, role in (expected | {"everywhere": "diffuse"}).items()}


def test_wired_heads_are_as_semantic_as_they_should_be(tables):
    found = tables["roles"].drop_duplicates("head").set_index("head")["semanticity"]
    assert [found[head] for head in range(4)] == ["monosemantic", "monosemantic", "positional", "diffuse"]


def test_halves_are_the_rules_on_half_of_the_pictures(tables):
    """Wired heads are the same in both halves; and each half is a run over its pictures alone."""
    found = tables["role_halves"].set_index("head")
    expected = {"chirp": "chirp detector", "text": "text detector", "everywhere": "diffuse"}
    for name, role in expected.items():
        assert found.loc[HEADS[name], ["role_a", "role_b"]].tolist() == [role, role]
    assert found["n_a"].tolist() == [COUNT // 2] * 4 and found["n_b"].tolist() == [COUNT - COUNT // 2] * 4


def test_claims_of_a_model_of_one_layer_say_what_cannot_be_tested(tables):
    found = tables["claims"]
    verdicts = found.groupby("claim")["verdict"].first()
    assert verdicts[["C1", "C2", "C3", "C6"]].tolist() == ["untestable"] * 4
    assert verdicts["C5"] == "untestable"  # one head of each kind, none polysemantic
    values = found[found["claim"] == "C5"].set_index("quantity")["value"]
    assert values[[POLYSEMANTIC, KAPPA, CONFIRMED]].tolist() == [0.0, 1.0, 1.0]


def test_evidence_of_wired_heads(tables):
    """A head that follows lets go of everything and follows all the way; one that stays does nothing of the kind."""
    named = tables["twins"][tables["twins"]["concept"].isin(NAMED)]
    found = named.set_index(["query", "head", "edit"])["value"]
    for query in ("cls", "mean"):
        assert found[query, HEADS["chirp"], "without(chirp)"] == pytest.approx(1.0, abs=0.1)
        assert found[query, HEADS["chirp"], "chirp_elsewhere"] == pytest.approx(1.0, abs=0.02)
        assert found[query, HEADS["text"], "without(text)"] == pytest.approx(1.0, abs=0.1)
        assert found[query, HEADS["text"], "replace(text)"] == pytest.approx(1.0, abs=1e-6)
        assert found[query, HEADS["text"], "grey(text)"] == pytest.approx(1.0, abs=0.1)
        assert found[query, HEADS["text"], "move(title)"] == pytest.approx(1.0, abs=0.02)
        assert found[query, HEADS["position"], "without(colorbar)"] == pytest.approx(0.0, abs=0.02)
        assert found[query, HEADS["position"], "move(colorbar)"] == pytest.approx(0.0, abs=0.02)
    everywhere = tables["twins"][tables["twins"]["head"] == HEADS["everywhere"]]
    assert everywhere["value"].isna().all()


def test_position_control_sees_through_the_position_head(tables):
    found = tables["concepts"]
    found = found[(found["query"] == "cls") & (found["concept"] == "colorbar")].set_index("head")
    head = found.loc[HEADS["position"]]
    assert head["lift_position"] == pytest.approx(head["lift"], rel=0.01) and head["p"] > 0.05
    chirp = tables["concepts"].set_index(["query", "head", "concept"]).loc[("cls", HEADS["chirp"], "chirp")]
    assert chirp["lift_position"] < 2 and chirp["lift"] > 10 and chirp["p"] == 0.001


def blobs(rng, count):
    """Maps with one bright spot each, somewhere else in every picture."""
    rows, cols = np.arange(16)[:, None], np.arange(16)[None]
    centres = rng.uniform(0, 16, (32, count, 2, 1, 1))
    return np.exp(-((rows - centres[:, :, 0]) ** 2 + (cols - centres[:, :, 1]) ** 2) / 4) + 1e-6


def habits(rng, count):
    """Maps that are the same in all pictures: one bright spot at the place of a chirp of some other picture."""
    return np.tile(blobs(rng, count)[:1], (32, 1, 1, 1)) * rng.uniform(0.9, 1.1, (32, count, 16, 16))


@pytest.mark.parametrize("preset", ["default", "published"])
def test_maps_that_know_nothing_are_no_detectors(preset):
    """Spots and habits, which can reach high lifts, on real masks with a sink in one picture alone."""
    size, rng = 224, np.random.default_rng(1)
    pictures = open_pictures(preset, 32, seed=3, image_size=size, patch_size=14, target_names=TARGET_NAMES)
    maps = np.concatenate([blobs(rng, 30), habits(rng, 30)], axis=1)[:, :, None]  # [image layer head row col]
    sinks = np.zeros((32, 16, 16), dtype=bool)
    sinks[4, 8, 8] = True
    masks = concept_masks(pictures.patch_labels, drawn_masks(pictures.images, 16, 16), sinks)
    found = concept_table(
        maps, masks, CONCEPTS, bootstrap_indices(32, 20), model="random", query="cls", seed=0, num_permutations=299
    )
    tested = found.dropna(subset=["q_value"])
    assert (tested["q_value"] < 0.05).mean() <= 0.05
    named = role_table(found, pd.DataFrame(columns=list(TWIN_COLUMNS)))
    false = named["semanticity"].isin(["monosemantic", "polysemantic", "unclassified"])
    assert false.mean() <= 0.05 and not (named["concepts"] == "sink").any()
    assert (found["share_above_2"] >= 0.8).any() or preset == "default"  # lifts alone would have named some


def test_random_maps_have_no_role():
    """Maps that know nothing of their pictures, on real masks: false roles in at most 5 % of the heads."""
    pictures = open_pictures("default", 32, seed=3, image_size=224, patch_size=14, target_names=TARGET_NAMES)
    rng = np.random.default_rng(0)
    maps = rng.gamma(0.3, size=(32, 2, 12, 16, 16))
    drawn = drawn_masks(pictures.images, 16, 16)
    masks = concept_masks(pictures.patch_labels, drawn, np.zeros((32, 16, 16), dtype=bool))
    found = concept_table(
        maps, masks, CONCEPTS, bootstrap_indices(32, 20), model="random", query="cls", seed=0, num_permutations=299
    )
    assert (found["q_value"] < 0.05).mean() <= 0.05
    named = role_table(found, pd.DataFrame(columns=list(TWIN_COLUMNS)))
    assert (named["semanticity"] != "diffuse").mean() <= 0.05
