"""The table of where effects go: parts add up to the whole, masks are the tokens they say, every number again."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from check_evidence import COUNT, batch_of, evidence_of, source_of, tiny_opened
from scipy.stats import trim_mean, ttest_1samp

from analysis.checks import paths
from analysis.checks.paths import COLUMNS, token_masks
from analysis.settings import CompareSettings
from attribution.ablation import counterfactual_ablation, zero_ablation
from attribution.paths import by_part, by_route, by_token
from attribution.vit import head_layout
from data_synth import REGIONS

SETTINGS = CompareSettings(methods=("random",), curve_pictures=5, bootstrap_replicates=60)
CHIRP = REGIONS.index("chirp")


@pytest.fixture(scope="module", params=["dinov2_lora", "registers"])
def made(request):
    opened = tiny_opened(request.param)
    source = replace(source_of(opened.model), answer_regions=("chirp",))
    evidence = evidence_of(paths, opened, source, SETTINGS)
    return opened, source, evidence, paths.table(evidence)


def test_the_masks_are_the_first_token_the_answers_patches_and_the_rest(made):
    opened, source, *_ = made
    layout = head_layout(opened.model)
    labels = source.draw(range(COUNT)).patch_labels
    found = token_masks(labels, ("chirp",), layout, COUNT)
    assert list(found) == ["read_out", "answer", "other"]
    assert bool((sum(mask.int() for mask in found.values()) == 1).all())
    for image in range(COUNT):
        places = [layout.num_special_tokens + at for at in np.flatnonzero(labels[image].ravel() == CHIRP)]
        assert found["answer"][image].nonzero().flatten().tolist() == places
        assert found["read_out"][image].nonzero().flatten().tolist() == [0]
    unknown = token_masks(None, (), layout, 2)
    assert list(unknown) == ["read_out", "other"] and bool((unknown["read_out"] ^ unknown["other"]).all())


def test_every_number_of_the_table(made):
    opened, source, _, table = made
    batch = batch_of(opened, source, SETTINGS, range(5))
    labels = source.draw(range(5)).patch_labels
    tokens = by_token(opened.model, batch, token_masks(labels, ("chirp",), head_layout(opened.model), 5))
    routes, parts = by_route(opened.model, batch), by_part(opened.model, batch)
    zero = zero_ablation(opened.model, batch).delta_loss
    counterfactual = counterfactual_ablation(opened.model, batch).delta_loss
    direct = routes["direct"]
    expected = {("token", name): effect for name, effect in tokens.items()}
    expected[("token", "interaction")] = zero - sum(tokens.values())
    expected[("token", "whole")] = expected[("route", "whole")] = zero
    expected |= {("route", "direct"): direct, ("route", "mlps"): routes["mlps"] - direct}
    expected |= {("route", "heads"): routes["heads"] - direct}
    expected[("route", "interaction")] = zero - routes["mlps"] - routes["heads"] + direct
    expected |= {("part", name): effect for name, effect in parts.items()}
    expected[("part", "interaction")] = counterfactual - sum(parts.values())
    expected[("part", "whole")] = counterfactual
    assert list(table.columns) == list(COLUMNS) and len(table) == 6 * len(expected)
    assert list(zip(table["split"], table["place"], strict=True))[: len(expected)] == list(
        dict.fromkeys(zip(table["split"], table["place"], strict=True))
    )
    for row in table.to_dict("records"):
        effects = 100 * expected[row["split"], row["place"]][:, row["layer"], row["head"]].numpy()
        whole = 100 * expected[row["split"], "whole"][:, row["layer"], row["head"]].mean().item()
        assert row["effect_var_pct"] == pytest.approx(effects.mean(), abs=1e-8) and row["n"] == 5
        assert row["trimmed_var_pct"] == pytest.approx(trim_mean(effects, 0.1), abs=1e-8)
        if row["place"] != "interaction":  # a difference of numbers that may be equal
            low, high = ttest_1samp(effects, 0).confidence_interval(0.95)
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-6)
        assert abs(whole) < 0.05 or row["share_of_whole"] == pytest.approx(effects.mean() / whole, abs=1e-8)


def test_shares_of_a_split_add_up_to_one(made):
    *_, table = made
    parts = table[table["place"] != "whole"]
    sums = parts.groupby(["layer", "head", "split"])["share_of_whole"].sum(min_count=1).dropna()
    assert len(sums) and np.allclose(sums, 1.0)
    whole = table[table["place"] == "whole"]
    assert np.allclose(whole["share_of_whole"].dropna(), 1.0)


def test_pictures_that_lack_labels_or_counterfactuals_have_fewer_rows():
    opened = tiny_opened()
    bare = replace(source_of(opened.model, labelled=False), counterfactual=None)
    [one] = paths.passes(opened, bare, SETTINGS, {}, {})
    assert one.needs == () and one.rows == tuple(range(5))
    batch = replace(batch_of(opened, source_of(opened.model), SETTINGS, range(3)), counterfactual_pixel_values=None)
    found = one.compute(batch, [], 3)[paths.NAME]
    assert set(found) == {"read_out", "other", "direct", "mlps", "heads", "zero"}
    whole = paths.passes(opened, replace(source_of(opened.model), answer_regions=("chirp",)), SETTINGS, {}, {})[0]
    assert whole.needs == ("counterfactual_pixel_values",) and whole.forwards > one.forwards
    labelled = source_of(opened.model)
    other = replace(labelled, answer_regions=("chirp",))
    assert paths.passes(opened, labelled, SETTINGS, {}, {})[0].depends_on[paths.NAME]["labels"] == ""
    assert paths.passes(opened, other, SETTINGS, {}, {})[0].depends_on[paths.NAME]["labels"]


def test_the_largest_picture_is_told(made):
    opened, source, _, table = made
    batch = batch_of(opened, source, SETTINGS, range(5))
    direct = by_route(opened.model, batch)["direct"]
    row = table[(table["place"] == "direct") & (table["layer"] == 1) & (table["head"] == 0)].squeeze()
    effects = direct[:, 1, 0]
    assert row["largest_picture_share"] == pytest.approx(float(effects[effects.abs().argmax()] / effects.sum()))
    assert isinstance(table, pd.DataFrame) and torch.is_tensor(direct)
