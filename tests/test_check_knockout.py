"""The table of attention knockout, against means over single pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from check_evidence import batch_of, computed, evidence_of, source_of, tiny_opened
from scipy.stats import trim_mean

from analysis.checks import knockout
from analysis.intervals import interval_over_images
from analysis.settings import CompareSettings
from attribution.ablation import zero_ablation
from attribution.heads import attention_maps
from attribution.knockout import attention_knockout
from attribution.knockout_predicted import predicted_knockout
from data_synth import REGIONS, TEXT_REGIONS

SETTINGS = CompareSettings(methods=("cls_mass",), batch_size=3, curve_pictures=5, bootstrap_replicates=50)


@pytest.fixture(scope="module")
def opened():
    return tiny_opened()


@pytest.fixture(scope="module")
def source(opened):
    """Two of the pictures show no colour bar, and one shows no chirp."""
    whole = source_of(opened.model)

    def draw(rows):
        pictures = whole.draw(rows)
        patches = pictures.patch_labels.copy()
        for place, row in enumerate(rows):
            for lacking, region in (((0, 3), "colorbar"), ((4,), "chirp")):
                if row in lacking:
                    patches[place][patches[place] == REGIONS.index(region)] = REGIONS.index("margin")
                elif region not in [REGIONS[number] for number in patches[place].ravel()]:
                    patches[place, 0, int(region == "chirp")] = REGIONS.index(region)
        return replace(pictures, patch_labels=patches)

    return replace(whole, draw=draw)


@pytest.fixture(scope="module")
def evidence(opened, source):
    return evidence_of(knockout, opened, source, SETTINGS)


def masks(source, row):
    """The regions of one picture, patch by patch."""
    names = {"chirp": ("chirp",), "text": TEXT_REGIONS, "colorbar": ("colorbar",)}
    labels = source.draw([row]).patch_labels[0]
    return {
        region: torch.tensor([[[REGIONS[number] in parts for number in line] for line in labels]])
        for region, parts in names.items()
    }


def test_the_table_is_a_mean_over_single_pictures(opened, source, evidence):
    table = knockout.table(evidence)
    assert tuple(table) == knockout.COLUMNS
    keys = [
        (layer, head, region) for layer in range(3) for head in range(2) for region in ("chirp", "text", "colorbar")
    ]
    assert list(zip(table["layer"], table["head"], table["region"], strict=True)) == keys
    effects, looks, on_map, removed = {}, {}, {}, {}
    predicted, by_gradient = {}, {}
    for row in range(5):
        batch = batch_of(opened, source, SETTINGS, [row])
        found = attention_knockout(opened.model, batch, masks(source, row))
        assert found.regions == ("chirp", "text", "colorbar")
        cls = attention_maps(opened.model, batch.pixel_values).maps["cls"]
        special = attention_maps(opened.model, batch.pixel_values).special_mass["cls"]
        for place, (region, mask) in enumerate(masks(source, row).items()):
            effects[row, region] = 100 * found.delta_loss[0, place].numpy()
            ahead = predicted_knockout(opened.model, batch, masks(source, row))
            predicted[row, region] = 100 * ahead.renormalised[0, place].numpy()
            by_gradient[row, region] = 100 * ahead.gradient[0, place].numpy()
            # A share of all attention: maps are renormalised over patches.
            share = (cls[0] * mask[0]).sum(dim=(-2, -1)) * (1 - special[0])
            looks[row, region] = share.numpy()
            on_map[row, region] = (cls[0] * mask[0]).sum(dim=(-2, -1)).numpy()
        removed[row] = 100 * zero_ablation(opened.model, batch).delta_loss[0].numpy()
    counts = {"chirp": 4, "text": 5, "colorbar": 3}
    for line in table.itertuples():
        with_it = [row for row in range(5) if masks(source, row)[line.region].any()]
        assert line.n == len(with_it) == counts[line.region]
        effect = np.array([effects[row, line.region][line.layer, line.head] for row in with_it])
        ablation = np.mean([removed[row][line.layer, line.head] for row in with_it])
        assert line.effect_var_pct == pytest.approx(effect.mean(), abs=1e-9)
        assert line.effect_var_pct_trimmed == pytest.approx(effect.mean(), abs=1e-9)  # of five pictures none is cut
        mass = np.mean([looks[row, line.region][line.layer, line.head] for row in with_it])
        assert line.mass == pytest.approx(mass, abs=1e-6)
        map_mass = np.mean([on_map[row, line.region][line.layer, line.head] for row in with_it])
        assert line.mass_of_map == pytest.approx(map_mass, abs=1e-6) and line.mass < line.mass_of_map
        for given, expected in (("predicted", predicted), ("predicted_by_gradient", by_gradient)):
            mean = np.mean([expected[row, line.region][line.layer, line.head] for row in with_it])
            assert getattr(line, f"{given}_var_pct") == pytest.approx(mean, abs=1e-9)
        assert line.ablation_zero_var_pct == pytest.approx(ablation, abs=1e-9)
        assert line.share_of_ablation == pytest.approx(effect.mean() / ablation, rel=1e-9)
        alone = np.full((5, 1), np.nan)
        alone[with_it, 0] = effect
        interval = interval_over_images(alone, evidence.indices(5))
        assert line.ci_low == pytest.approx(interval.low[0], abs=1e-9)
        assert line.ci_high == pytest.approx(interval.high[0], abs=1e-9)
        assert line.ci_low < line.effect_var_pct < line.ci_high


def test_a_share_of_next_to_nothing_is_not_given(evidence):
    tiny = np.array([[3, 2], [1, 0], [-4, -6]]) * 1e-4  # 0.01 % a step
    truth = replace(evidence.truth, delta_loss=np.broadcast_to(tiny, evidence.truth.delta_loss.shape))
    table = knockout.table(replace(evidence, truth=truth))
    assert set(table["ablation_zero_var_pct"].round(9)) == {0.03, 0.02, 0.01, 0.0, -0.04, -0.06}
    assert (table["share_of_ablation"].notna() == (table["ablation_zero_var_pct"] < -0.05)).all()


def test_a_region_that_no_picture_shows_has_no_rows(evidence):
    found = {name: values.copy() for name, values in evidence.read("check_knockout").items()}
    for values in found.values():
        values[:, 2] = np.nan
    table = knockout.table(replace(evidence, read=lambda _: found))
    whole = knockout.table(evidence)
    kept = whole[whole["region"] != "colorbar"].reset_index(drop=True)
    assert table.equals(kept) and set(table["region"]) == {"chirp", "text"}


def test_without_labels_of_patches_there_is_nothing(opened, evidence):
    source = source_of(opened.model, labelled=False)
    assert knockout.passes(opened, source, SETTINGS, {}, {}) == []
    table = knockout.table(replace(evidence, source=source))
    assert table.empty and tuple(table) == knockout.COLUMNS


def test_the_pass_takes_the_first_pictures_whatever_goes_together(opened, source, evidence):
    (one,) = knockout.passes(opened, source, SETTINGS, {}, {})
    assert one.rows == tuple(range(5)) and one.name == knockout.NAME
    batch = batch_of(opened, source, SETTINGS, range(5))
    together = one.compute(batch, [one.name], 16)[one.name]
    for name, values in evidence.read(one.name).items():
        assert values.dtype == np.float64 and values.shape == (5, 3, 3, 2)
        np.testing.assert_allclose(values, together[name], rtol=1e-9, atol=1e-12)
    again = computed(opened, source, SETTINGS, [one])[one.name]
    np.testing.assert_array_equal(again["mass"], evidence.read(one.name)["mass"])


def test_trimmed_means_leave_out_the_ends(evidence):
    rng = np.random.default_rng(1)
    effects, removed = rng.standard_t(2, (12, 3, 3, 2)), rng.normal(size=(12, 3, 2))
    truth = replace(evidence.truth, delta_loss=removed)
    found = {"delta_loss": effects, "mass": np.abs(effects), "predicted": effects, "predicted_by_gradient": effects}
    twice = {
        "maps": {"cls": np.concatenate([evidence.maps["cls"]] * 2)},
        "patch_labels": np.concatenate([evidence.patch_labels] * 2),
    }
    table = knockout.table(replace(evidence, truth=truth, read=lambda _: found, **twice))
    for line in table.itertuples():
        column = effects[:, knockout.REGIONS.index(line.region), line.layer, line.head]
        assert line.effect_var_pct_trimmed == pytest.approx(100 * trim_mean(column, 0.1), abs=1e-9)
        assert abs(line.effect_var_pct_trimmed - line.effect_var_pct) > 1e-6 and line.n == 12


def test_pictures_without_an_effect_count_for_the_mass_alone(evidence):
    """Where rounding leaves no attention outside the region there is a mass, and nothing that could be renormalised."""
    found = {name: values.copy() for name, values in evidence.read("check_knockout").items()}
    shown = np.flatnonzero(np.isfinite(found["mass"][:, 0, 0, 0]))
    found["delta_loss"][shown[0], 0, 1, 0] = np.nan
    table = knockout.table(replace(evidence, read=lambda _: found))
    at = (table["region"] == "chirp") & (table["layer"] == 1) & (table["head"] == 0)
    whole = knockout.table(evidence)
    assert table[~at].equals(whole[~at]) and at.sum() == 1
    row, before = table[at].iloc[0], whole[at].iloc[0]
    assert row["n"] == len(shown) - 1 and row["mass"] == before["mass"]
    assert row["effect_var_pct"] == pytest.approx(100 * found["delta_loss"][shown[1:], 0, 1, 0].mean(), abs=1e-12)
    removed = 100 * evidence.truth.delta_loss[shown[1:], 1, 0].mean()
    assert row["ablation_zero_var_pct"] == pytest.approx(removed) != before["ablation_zero_var_pct"]
