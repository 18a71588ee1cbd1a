"""Tables of the checks on twins and pairs, from made-up stored arrays, against plain loops.

Three layers of two heads, and pictures of which some do not show an item: rows belong to their heads, pictures without
the item say nothing, and every number is what its name says.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, trim_mean, wilcoxon
from toy_pictures import toy_source

from analysis.checks import distraction, necessity, patching, redundancy
from analysis.checks.evidence import Evidence
from analysis.intervals import bootstrap_indices, interval_over_images
from analysis.scorecard import Truth
from analysis.settings import CompareSettings

COUNT, LAYERS, HEADS, TARGETS = 14, 3, 2, 3
PAIRS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
RNG = np.random.default_rng(5)
EFFECTS = RNG.standard_t(3, (20, LAYERS, HEADS))  # the truth is of more pictures than the check
TRUTH = Truth("zero", EFFECTS, EFFECTS[..., None], np.ones(20))


def shown_in(place):
    """Which pictures show the item of this place."""
    return np.arange(COUNT) % (place + 2) != 0


def evidence_with(arrays, orders=None):
    """What a check is given; its arrays are of the first pictures."""
    return Evidence(
        *(None, toy_source(COUNT), CompareSettings(), {}, {}, TRUTH, orders or {}),
        lambda count: bootstrap_indices(count, 60),
        lambda _: arrays,
    )


def drawn(items, *shape):
    """Random numbers `[image item ...]`, NaN where a picture does not show the item; one of the chirp there is none."""
    values = RNG.normal(size=(COUNT, len(items), *shape)) + 0.3
    for place, item in enumerate(items):
        values[~shown_in(place), place] = np.nan
        if item == "chirp":
            values[:, place] = np.nan
    return values


def limits_of(values):
    """Value and limits of one column over all pictures, NaN where the item is not shown."""
    found = interval_over_images(values[:, None], bootstrap_indices(len(values), 60))
    return [found.value[0], found.low[0], found.high[0]]


def only(table, **where):
    """The one row with these values."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_distraction_of_heads_layers_and_slopes():
    items = distraction.ITEMS
    without = drawn(items, LAYERS, HEADS)
    table = distraction.table(evidence_with({"delta_loss": without}))
    kept = [item for item in items if item != "chirp"]
    keys = [("head", *one, item) for one in PAIRS for item in kept]
    keys += [("layer", layer, -1, item) for layer in range(LAYERS) for item in kept]
    keys += [("slope", -1, -1, item) for item in kept]
    found = table.fillna({"layer": -1, "head": -1})
    assert list(zip(found["level"], found["layer"], found["head"], found["item"], strict=True)) == keys
    for place, item in enumerate(kept):
        shown = shown_in(place)
        for level, layer, head in [(key[0], key[1], key[2]) for key in keys if key[3] == item]:
            before, after = np.full(COUNT, np.nan), np.full(COUNT, np.nan)
            for row in np.flatnonzero(shown):
                both = 100 * EFFECTS[row], 100 * without[row, place]
                if level == "head":
                    before[row], after[row] = (effects[layer, head] for effects in both)
                elif level == "layer":
                    before[row], after[row] = (sum(effects[layer]) / HEADS for effects in both)
                else:
                    before[row], after[row] = (
                        np.polyfit(range(LAYERS), effects.mean(axis=1), 1)[0] for effects in both
                    )
            row = only(found, level=level, layer=layer, head=head, item=item)
            assert row["with_var_pct"] == pytest.approx(before[shown].mean())
            assert row["without_var_pct"] == pytest.approx(after[shown].mean())
            numbers = row[["difference_var_pct", "ci_low", "ci_high"]].tolist()
            assert numbers == pytest.approx(limits_of(before - after))
            assert numbers[0] == pytest.approx((before[shown] - after[shown]).mean())
            assert row["difference_var_pct_trimmed"] == pytest.approx(trim_mean((before - after)[shown], 0.1))
            assert row["n"] == shown.sum() < COUNT


def test_patching_of_heads_of_several_layers():
    items = patching.ITEMS
    arrays = {"twin": drawn(items, TARGETS)} | {
        name: drawn(items, LAYERS, HEADS, TARGETS) for name in ("patched", "removed_with", "removed_without")
    }
    table = patching.table(evidence_with(arrays))
    kept = [item for item in items if item != "chirp"]
    assert list(zip(table["item"], table["layer"], table["head"], strict=True)) == [
        (item, *one) for item in kept for one in PAIRS
    ]
    for place, item in enumerate(kept):
        rows = np.flatnonzero(shown_in(place))
        effect = arrays["twin"][rows, place]
        for layer, head in PAIRS:
            row = only(table, item=item, layer=layer, head=head)
            through, moved, left = (
                arrays[name][rows, place, layer, head] for name in ("patched", "removed_with", "removed_without")
            )
            assert row["share"] == pytest.approx((through * effect).sum() / (effect**2).sum())
            assert row["ci_low"] < row["share"] < row["ci_high"]
            shifts = [np.sqrt(np.mean(part**2)) for part in (moved, left)]
            assert row[["shift_with", "shift_without"]].tolist() == pytest.approx(shifts)
            assert row["shift_ratio"] == pytest.approx(shifts[1] / shifts[0])
            assert row["shift_ratio_ci_low"] < row["shift_ratio"] < row["shift_ratio_ci_high"]
            assert row["twin_shift"] == pytest.approx(np.sqrt(np.mean(effect**2)))
            assert row["n"] == len(rows) < COUNT


def test_necessity_of_groups_of_several_sizes():
    order = tuple(PAIRS[place] for place in (4, 0, 5, 2, 1, 3))
    orders = {f"looks_at_{item}": order[::step] for item, step in (("text", 1), ("colorbar", -1))}
    items, sizes = ("text", "colorbar"), (1, 5)
    arrays = {f"moved_{side}": drawn(items, len(sizes), TARGETS) for side in ("with", "without")}
    arrays |= {f"delta_{side}": drawn(items, len(sizes)) for side in ("with", "without")}
    table = necessity.table(evidence_with(arrays, orders))
    assert list(zip(table["item"], table["heads"], strict=True)) == [(item, size) for item in items for size in sizes]
    for place, item in enumerate(items):
        rows = np.flatnonzero(shown_in(place))
        for number, size in enumerate(sizes):
            row = only(table, item=item, heads=size)
            names = [f"L{layer}H{head}" for layer, head in orders[f"looks_at_{item}"][:size]]
            assert row["names"].split() == names
            moved = [
                np.sqrt(np.mean(arrays[f"moved_{side}"][rows, place, number] ** 2)) for side in ("with", "without")
            ]
            assert row[["shift_with", "shift_without"]].tolist() == pytest.approx(moved)
            assert row["ratio"] == pytest.approx(moved[1] / moved[0])
            assert row["ratio_ci_low"] < row["ratio"] < row["ratio_ci_high"]
            effects = [100 * arrays[f"delta_{side}"][:, place, number] for side in ("with", "without")]
            assert row["effect_with_var_pct"] == pytest.approx(effects[0][rows].mean())
            assert row["effect_without_var_pct"] == pytest.approx(effects[1][rows].mean())
            numbers = row[["difference_var_pct", "ci_low", "ci_high"]].tolist()
            assert numbers == pytest.approx(limits_of(effects[0] - effects[1]))
            assert numbers[0] == pytest.approx((effects[0] - effects[1])[rows].mean())
            assert row["n"] == len(rows) < COUNT


@pytest.mark.parametrize(
    ("heads", "sizes"), [(1, ()), (2, (1,)), (5, (1,)), (6, (1, 5)), (10, (1, 5)), (11, (1, 5, 10))]
)
def test_a_group_of_all_heads_is_none(heads, sizes):
    """Without any head nothing is left that could act on the item or not."""
    order = tuple((0, head) for head in range(heads))
    orders = {"looks_at_text": order, "looks_at_colorbar": order[::-1]}
    found = necessity.groups(orders, toy_source(COUNT))
    assert found == ({item[9:]: [whole[:size] for size in sizes] for item, whole in orders.items()} if sizes else {})


def residuals_of(scenarios, count=18):
    """Standardised outputs minus labels `[image scenario target]`, at random; heads matter in unlike degrees."""
    rng = np.random.default_rng(2)
    found = rng.normal(size=(count, len(scenarios), TARGETS)) * 0.2
    return found + rng.normal(size=(count, 1, TARGETS)) + np.linspace(0, 1, len(scenarios))[:, None]


def test_redundancy_of_pairs_by_loops():
    order = tuple(PAIRS[place] for place in (3, 0, 4, 2))
    scenarios = [(), *((one,) for one in order), *combinations(order, 2)]
    orders = {"ablation_zero": order}
    assert redundancy.scenarios_of(orders) == scenarios
    residuals = residuals_of(scenarios)
    table = redundancy.table(evidence_with({"residuals": residuals}, orders))
    assert len(table) == 6 and table["beyond_var_pct"].is_monotonic_decreasing and (table["n"] == 18).all()
    loss = {heads: 100 * np.mean(residuals[:, place] ** 2, axis=1) for place, heads in enumerate(scenarios)}
    moved = {heads: residuals[:, place] - residuals[:, 0] for place, heads in enumerate(scenarios)}
    p_values, rows = [], []
    for a, b in combinations(order, 2):
        row = only(table, layer_a=a[0], head_a=a[1], layer_b=b[0], head_b=b[1])
        effects = [loss[heads] - loss[()] for heads in ((a,), (b,), (a, b))]
        additive = 200 * np.mean(moved[a,] * moved[b,], axis=1)
        beyond = effects[2] - effects[0] - effects[1] - additive
        names = ("effect_a_var_pct", "effect_b_var_pct", "effect_pair_var_pct")
        assert row[list(names)].tolist() == pytest.approx([effect.mean() for effect in effects])
        assert row["additive_var_pct"] == pytest.approx(additive.mean())
        whole = row[["interaction_var_pct", "ci_low", "ci_high"]].tolist()
        assert whole == pytest.approx(limits_of(effects[2] - effects[0] - effects[1]))
        rest = row[["beyond_var_pct", "beyond_ci_low", "beyond_ci_high"]].tolist()
        assert rest == pytest.approx(limits_of(beyond))
        p_values.append(wilcoxon(beyond).pvalue)
        rows.append(row)
    q_values = false_discovery_control(p_values)
    for row, p, q in zip(rows, p_values, q_values, strict=True):
        assert row[["p", "q_value"]].tolist() == pytest.approx([p, q])
        assert row["is_backup"] == (row["beyond_ci_low"] > 0 and q < 0.05)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_stand_in_needs_both_interval_and_test(heavy):
    """One huge picture makes the mean of many small negative rests positive, and its interval reach 0; a rest of which
    the sign is one and the size is small is told by the test, and where the mean is negative it is no stand-in."""
    order = ((0, 0), (1, 1))
    scenarios = redundancy.scenarios_of({"ablation_zero": order})
    residuals = np.ones((18, len(scenarios), TARGETS))
    rest = np.full(18, -0.02) - np.linspace(0, 0.01, 18)
    if heavy:
        rest[0] = 60.0
    residuals[:, 3] = np.sqrt(1 + rest)[:, None]
    table = redundancy.table(evidence_with({"residuals": residuals}, {"ablation_zero": order}))
    row = table.iloc[0]
    assert row["beyond_var_pct"] == pytest.approx(100 * rest.mean()) and row["q_value"] < 0.05
    assert (row["beyond_var_pct"] > 0) == heavy and not row["is_backup"]


def test_an_interval_above_nothing_without_a_test_is_no_stand_in():
    """Of four pictures the signed-rank test cannot reject, however clear the interval."""
    order = ((0, 0), (1, 1))
    scenarios = redundancy.scenarios_of({"ablation_zero": order})
    residuals = np.ones((4, len(scenarios), TARGETS))
    residuals[:, 3] = np.sqrt(1 + np.array([0.5, 0.6, 0.7, 0.8]))[:, None]
    row = redundancy.table(evidence_with({"residuals": residuals}, {"ablation_zero": order})).iloc[0]
    assert row["beyond_ci_low"] > 0 and row["q_value"] > 0.05 and not row["is_backup"]


def test_pairs_are_of_the_first_twenty_heads():
    order = tuple((layer, head) for layer in range(5) for head in range(5))
    scenarios = redundancy.scenarios_of({"ablation_zero": order, "ablation_mean": order[::-1]})
    assert scenarios == [(), *((one,) for one in order[:20]), *combinations(order[:20], 2)]
    assert len(scenarios) == 1 + 20 + 190


def test_pictures_are_those_of_the_truth_in_order():
    """The effects with the item are of the same pictures as those without."""
    without = np.broadcast_to(EFFECTS[:COUNT, None], (COUNT, len(distraction.ITEMS), LAYERS, HEADS)).copy()
    table = distraction.table(evidence_with({"delta_loss": without}))
    assert np.abs(table["difference_var_pct"]).max() < 1e-12
    turned = replace(TRUTH, delta_loss=EFFECTS[::-1])
    evidence = replace(evidence_with({"delta_loss": without}), truth=turned)
    assert np.abs(distraction.table(evidence)["difference_var_pct"]).max() > 1
