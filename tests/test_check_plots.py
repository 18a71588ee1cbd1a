"""Figures of the checks and of seeds: the data on the artists. `check_tables` makes the tables without a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import SymLogNorm

from analysis import check_plots, knockout_plots, seed_plots
from analysis.artists import OKABE_ITO
from analysis.cells import CONTROL_INK

METHODS = (
    *("shapley", "gate_ig_out", "gate_ixg_out", "conductance_out", "layer_deeplift_out", "gate_ig", "gate_ixg"),
    *("layer_conductance", "layer_ig", "layer_deeplift", "layer_gradient_shap", "gate_saliency", "gate_ixg_abs"),
    *("internal_influence", "layer_activation", "value_norm", "chefer", "attention_gradient", "rollout_drop"),
    *("cls_mass", "entropy", "max_weight", "attention_distance", "weight_norm", "layer_index", "random"),
)
MODELS = ("reinitialised", "cascade_3", "cascade_6", "cascade_9", "cascade_12", "not_finetuned")
VARIANTS = ("steps_half", "steps_double", "baseline_black", "baseline_counterfactual")
REGIONS = ("chirp", "text", "colorbar")
COUNTS = (0, 1, 2, 4, 8, 12, 18, 24, 36, 48, 60, 72)


def check_tables(num_layers: int = 12, num_heads: int = 6, methods=METHODS, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables shaped like those of the checks, with heavy-tailed effects and methods from good to useless."""
    rng = np.random.default_rng(seed)
    tables = {}
    count = num_layers * num_heads
    removed = np.unique([min(at, count) for at in COUNTS])
    rows: list[tuple] = []
    for at, method in enumerate((*methods, "ablation_zero")):
        skill = 1.0 if method == "ablation_zero" else 0.0 if method == "random" else 0.95 - 0.035 * at
        for order, power in (("most_first", 1 - 0.8 * skill), ("least_first", 1 + 5 * skill)):
            rise = 160 * (removed / count) ** power
            area = float(np.trapezoid(rise, removed) / count)
            half = 0.06 * rise + 0.05
            rows += [
                (method, order, int(k), value, value - h, value + h, area, 256)
                for k, value, h in zip(removed, rise, half, strict=True)
            ]
    names = "method order removed loss_rise_var_pct ci_low ci_high area n"
    tables["curves"] = pd.DataFrame(rows, columns=names.split())

    layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
    parts = []
    for region, share in (("chirp", 0.12), ("text", 0.2), ("colorbar", 0.06)):
        mass = rng.beta(0.7, 0.7 / share, count)
        effect = rng.standard_t(1.5, count) * 0.1 + (region == "chirp") * 8 * mass * layer / num_layers
        half = 0.05 + 0.4 * np.abs(effect)
        columns = {"layer": layer, "head": head, "region": region, "effect_var_pct": effect}
        parts.append(
            pd.DataFrame({**columns, "ci_low": effect - half, "ci_high": effect + half, "mass": mass, "n": 64})
        )
    tables["knockout"] = pd.concat(parts, ignore_index=True)

    rows = []
    for at, method in enumerate(methods):
        for model in MODELS:
            own = np.clip(rng.normal(0.02 * at if "cascade" not in model else 0.3, 0.15), -0.9, 0.95)
            truth = np.clip(rng.normal(0.2, 0.2), -0.9, 0.9)
            n = 32 if method.startswith("layer_deeplift") else 256
            rows.append((method, model, truth, truth - 0.15, truth + 0.12, own, own - 0.1, own + 0.1, n))
    names = "method model spearman_with_truth ci_low ci_high spearman_with_own own_ci_low own_ci_high n"
    tables["randomised"] = pd.DataFrame(rows, columns=names.split())

    rows = []
    for at, method in enumerate(name for name in methods if "ig" in name or "layer" in name or "cond" in name):
        for variant in VARIANTS:
            if variant.startswith("baseline") and method.startswith("gate"):
                continue  # a gate has no pixel baseline
            default = 0.85 - 0.04 * at
            moved = rng.normal(0, 0.03 if "steps" in variant else 0.15)
            with_default = 1 - abs(moved) if at else -0.2
            rows.append((method, variant, with_default, default + moved, default, rng.integers(3, 11) / 10, 16))
    names = "method variant spearman_with_default spearman_with_truth spearman_with_truth_default top_10_kept n"
    tables["sensitivity"] = pd.DataFrame(rows, columns=names.split())

    rows = []
    for at, method in enumerate(methods):
        for plant, statistic, best in (
            ("silenced", "silenced_in_last_6", 1.0),
            ("silenced", "largest_score_ratio", 0.0),
            ("halves", "split_ratio", 1.0),
            ("permuted", "spearman", 1.0),
        ):
            rows.append((method, plant, statistic, best + rng.normal(0, 0.02 * at) * (at > 3), 32))
    tables["planted"] = pd.DataFrame(rows, columns="method plant statistic value n".split())

    rows, others = [], []
    for at, model in enumerate(("seed 1", "seed 2", "seed 3")):
        for number in range(num_layers):
            for truth in ("ablation_zero", "ablation_mean"):
                effect = 0.3 + 0.2 * number + rng.normal(0, 0.2)
                rows.append((model, number, truth, effect, effect - 0.3, effect + 0.4))
        for place, method in enumerate(methods):
            for truth in ("ablation_zero", "ablation_mean"):
                value = 0.9 - 0.03 * place + rng.normal(0, 0.05) - 0.02 * at
                others.append((model, method, truth, value, value - 0.1, value + 0.08))
    tables["layers"] = pd.DataFrame(rows, columns="model layer truth effect_var_pct ci_low ci_high".split())
    tables["methods"] = pd.DataFrame(others, columns="model method truth spearman ci_low ci_high".split())
    return tables


@pytest.fixture(scope="module")
def tables():
    return check_tables()


def labels_of(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- removal_curves ----


def test_removal_curves_colour_the_best_by_area_and_dash_random(tables):
    curves = tables["curves"]
    figure = check_plots.removal_curves(curves.sample(frac=1, random_state=0), coloured=3)
    areas = curves.drop_duplicates(["method", "order"]).pivot(index="method", columns="order", values="area")
    gained = (areas["most_first"] - areas["least_first"]).drop(["random", "ablation_zero"])
    best = gained.sort_values(ascending=False).index[:3].tolist()
    shown = [f"{name} (band: 95 % interval)" for name in best[:2]] + best[2:]
    assert legend_of(figure) == [*shown, "ablation_zero", "random", "other methods"]
    for panel, order in zip(figure.axes, ("most_first", "least_first"), strict=True):
        lines = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
        for name, label in zip((*best, "random", "ablation_zero"), (*shown, "random", "ablation_zero"), strict=True):
            rows = curves[(curves["method"] == name) & (curves["order"] == order)].sort_values("removed")
            assert lines[label].get_xdata().tolist() == rows["removed"].tolist()
            assert lines[label].get_ydata().tolist() == rows["loss_rise_var_pct"].tolist()
        assert lines["random"].get_linestyle() == "--" and lines[shown[0]].get_linestyle() == "-"
        assert sum(line.get_label() == "other methods" for line in panel.lines) == len(METHODS) - 4
        assert len(panel.collections) == 2  # bands of the two best alone
    assert [ax.lines[-1].get_color() for ax in figure.axes] == [OKABE_ITO[2]] * 2  # one colour in both panels


def test_removal_curves_keep_the_given_methods_and_their_bands(tables):
    figure = check_plots.removal_curves(tables["curves"], methods=["random", "chefer"])
    shown = [f"{name} (band: 95 % interval)" for name in ("random", "chefer")]
    assert legend_of(figure) == [*shown, "ablation_zero", "other methods"]
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    rows = tables["curves"].query("method == 'chefer' and order == 'most_first'")
    assert band[:, 1].max() == rows["ci_high"].max() and band[:, 1].min() == rows["ci_low"].min()


def test_removal_curves_with_a_heavy_tail_are_symmetric_log_and_say_so(tables):
    curves = tables["curves"].copy()
    curves["loss_rise_var_pct"] = curves["loss_rise_var_pct"] ** 3
    panel = check_plots.removal_curves(curves).axes[0]
    assert panel.get_yscale() == "symlog" and "symmetric log" in panel.get_ylabel()


# ---- knockout_table, mass_against_knockout ----


def test_knockout_table_stacks_effect_and_mass_of_each_region(tables):
    knockout = tables["knockout"]
    figure = knockout_plots.knockout_table(
        knockout.sample(frac=1, random_state=1), regions=["chirp", "text", "colorbar"]
    )
    panels = [ax for ax in figure.axes if ax.images]
    titles = [f"{region} (n=64):\neffect of hiding it" for region in REGIONS]
    titles += [f"{region}: attention on it" for region in REGIONS]
    assert [ax.get_title() for ax in panels] == titles
    for at, region in enumerate(REGIONS):
        rows = knockout[knockout["region"] == region]
        assert panels[at].images[0].get_array().ravel().tolist() == rows["effect_var_pct"].tolist()
        assert panels[at + 3].images[0].get_array().ravel().tolist() == rows["mass"].tolist()
        marked = {(int(y + 0.32 + 0.5), int(x - 0.38 + 0.5)) for x, y in panels[at].collections[0].get_offsets()}
        sure = rows[(rows["ci_low"] > 0) | (rows["ci_high"] < 0)]
        assert marked == set(zip(sure["layer"], sure["head"], strict=True))
    norms = [ax.images[0].norm for ax in panels]
    assert len({id(norm) for norm in norms}) == 2  # one scale for effects, one for masses
    assert norms[0].vmax == -norms[0].vmin == knockout["effect_var_pct"].abs().max()
    assert isinstance(norms[0], SymLogNorm) and norms[3].vmin == 0


@pytest.mark.parametrize("largest", [3.0, 0.004])
def test_knockout_table_leaves_white_what_prints_as_nothing_and_tells_pictures_by_region(tables, largest):
    knockout = tables["knockout"].copy()
    small = np.linspace(-0.0049, 0.0039, len(knockout))
    knockout["effect_var_pct"] = np.where(np.arange(len(knockout)) % 72 == 0, largest, small)
    knockout["n"] = knockout["region"].map({"chirp": 32, "text": 26, "colorbar": 23})
    figure = knockout_plots.knockout_table(knockout)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title().split(":")[0] for ax in panels[:3]] == ["chirp (n=32)", "text (n=26)", "colorbar (n=23)"]
    norm = panels[0].images[0].norm
    assert norm.vmax >= 0.01 and getattr(norm, "linthresh", 0.01) == 0.01
    if largest > 1:
        assert np.abs(norm([-0.0049, 0.0049]) - 0.5).max() < 0.04


@pytest.mark.parametrize("count", [1, 4, 5])
def test_knockout_table_draws_any_number_of_regions(tables, count):
    chirp = tables["knockout"].query("region == 'chirp'")
    table = pd.concat([chirp.assign(region=f"region {at}") for at in range(count)])
    figure = knockout_plots.knockout_table(table)
    figure.draw_without_rendering()
    assert len([ax for ax in figure.axes if ax.images]) == 2 * count
    assert figure.get_figwidth() < 11
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert len(bars) == 2


def test_numbers_in_small_cells_are_short():
    assert [knockout_plots._short(v) for v in (0.0, 0.123, -0.5, 0.996, 1.26, -3.0, 9.96, 12.3, -123.4)] == [
        *(".00", ".12", "-.50", "1.0", "1.3", "-3.0", "10", "12", "-123"),
    ]


def test_mass_against_knockout_places_heads_and_names_the_outstanding(tables):
    knockout = tables["knockout"]
    figure = knockout_plots.mass_against_knockout(knockout)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [f"{region} (n=64)" for region in REGIONS]
    assert figure.get_supxlabel() == "share of the CLS attention on the region (square-root axis)"
    assert len({ax.get_xlim() for ax in panels}) == 1 and panels[0].get_xlim()[1] > knockout["mass"].max()
    assert panels[0].get_xticks()[0] == 0 and len(panels[0].get_xticks()) > 2
    for panel, region in zip(panels, REGIONS, strict=True):
        rows = knockout[knockout["region"] == region]
        dots = panel.collections[0]
        assert dots.get_offsets().tolist() == rows[["mass", "effect_var_pct"]].to_numpy().tolist()
        assert dots.get_array().tolist() == rows["layer"].tolist()
        far = rows.loc[(rows["effect_var_pct"] - rows["effect_var_pct"].median()).abs().idxmax()]
        assert f"L{far['layer']}H{far['head']}" in texts(panel)
        boxes = [text.get_window_extent() for text in panel.texts if text.get_text()]
        assert not any(boxes[i].overlaps(boxes[j]) for i in range(len(boxes)) for j in range(i))
    assert "symmetric log" in figure.get_supylabel()


def test_mass_against_knockout_counts_the_heads_it_cannot_place(tables):
    knockout = tables["knockout"].copy()
    knockout.loc[:1, "mass"] = np.nan
    knockout.loc[knockout["region"] == "text", "mass"] = np.nan
    figure = knockout_plots.mass_against_knockout(knockout)
    assert figure.axes[0].get_title() == "chirp (n=64) (2 heads without a value)"
    assert figure.axes[1].get_title() == "text (n=64) (72 heads without a value)" and not figure.axes[1].texts


# ---- randomised_bars ----


def test_randomised_bars_put_the_most_forgetful_first_and_mark_intervals(tables):
    randomised = tables["randomised"]
    left, right = check_plots.randomised_bars(randomised, controls=["random"]).axes[:2]
    own = randomised.pivot(index="method", columns="model", values="spearman_with_own")[list(MODELS)]
    order = own["reinitialised"].abs().sort_values().index
    names = labels_of(left.yaxis)
    assert [name.split(" ")[0] for name in names] == list(order)
    assert {name for name in names if "n=" in name} == {"layer_deeplift (n=32)", "layer_deeplift_out (n=32)"}
    assert left.images[0].get_array().tolist() == own.loc[order].to_numpy().tolist()
    truth = randomised.pivot(index="method", columns="model", values="spearman_with_truth")
    assert right.images[0].get_array().tolist() == truth.loc[order, list(MODELS)].to_numpy().tolist()
    for panel, low, high in ((left, "own_ci_low", "own_ci_high"), (right, "ci_low", "ci_high")):
        sure = ((randomised[low] > 0) | (randomised[high] < 0)).sum()
        assert len(panel.collections[0].get_offsets()) == sure
    grey = [t.get_text() for t in left.get_yticklabels() if t.get_color() == CONTROL_INK]
    assert grey == ["random"]


# ---- sensitivity_heatmap, planted_heatmap ----


def test_sensitivity_heatmap_shows_values_and_colours_the_distance_from_the_ideal():
    rows = [("a", "steps_half", 0.9, 0.7, 0.8, 0.5, 16), ("b", "steps_double", 1.0, 0.6, 0.5, 1.0, 16)]
    names = "method variant spearman_with_default spearman_with_truth spearman_with_truth_default top_10_kept n"
    figure = check_plots.sensitivity_heatmap(pd.DataFrame(rows, columns=names.split()))
    panels = [ax for ax in figure.axes if ax.images]
    assert labels_of(panels[0].yaxis) == ["a", "b"] and labels_of(panels[0].xaxis) == ["steps half", "steps double"]
    assert [texts(ax) for ax in panels] == [
        ["0.90", "–", "–", "1.00"],
        ["−0.10", "–", "–", "0.10"],
        ["0.50", "–", "–", "1.00"],
    ]
    for panel, distance in zip(panels, ([0.1, 0.0], [0.1, 0.1], [0.5, 0.0]), strict=True):
        assert np.allclose(np.diagonal(panel.images[0].get_array()), distance)
    assert "(ideal 0)" in panels[1].get_title() and "share" in panels[2].get_title()


def test_sensitivity_heatmap_understands_a_number_of_heads_kept(tables):
    table = tables["sensitivity"].assign(top_10_kept=[10, 4] * (len(tables["sensitivity"]) // 2))
    panel = [ax for ax in check_plots.sensitivity_heatmap(table).axes if ax.images][2]
    assert "number kept" in panel.get_title() and "(ideal 10)" in panel.get_title()
    found = {
        text: value
        for text, value in zip(texts(panel), panel.images[0].get_array().ravel(), strict=True)
        if text != "–"
    }
    assert found == {"10": 0.0, "4": pytest.approx(0.6)}


def test_planted_heatmap_sorts_by_the_mean_distance_and_takes_ideals(tables):
    planted = tables["planted"]
    figure = check_plots.planted_heatmap(planted, ideals={"largest_score_ratio": 0.0})
    ax = figure.axes[0]
    ideal = np.where(planted["statistic"] == "largest_score_ratio", 0.0, 1.0)
    distance = planted.assign(distance=(planted["value"] - ideal).abs())
    miss = distance.assign(distance=distance["distance"].round(4)).groupby("method")["distance"].mean()
    last = {"random", "layer_index", "parameter_norm"}
    order = sorted(miss.index, key=lambda name: (miss[name], name in last, name))
    assert labels_of(ax.yaxis) == list(order)
    columns = labels_of(ax.xaxis)
    assert columns[0] == "halves: split ratio (ideal 1)" and columns[3] == "silenced: largest score ratio (ideal 0)"
    drawn = ax.images[0].get_array()[:, 3]
    chosen = distance[distance["statistic"] == "largest_score_ratio"].set_index("method")["distance"]
    assert np.allclose(drawn, chosen.loc[order])
    value = planted.query("method == 'random' and statistic == 'spearman'")["value"].item()
    cell = list(order).index("random") * 4 + columns.index("permuted: spearman (ideal 1)")
    assert texts(ax)[cell] == f"{value:.2f}".replace("-", "−")


def test_planted_heatmap_ties_what_prints_alike_takes_no_answer_for_the_worst_and_tells_pictures():
    rows = [
        *(("random", "halves", "difference", 0.0, 2), ("random", "wired", "rank", 1.0, 16)),
        *(("noisy", "halves", "difference", 7e-6, 2), ("noisy", "wired", "rank", 1.0, 16)),
        *(("exact", "halves", "difference", 0.0, 2), ("exact", "wired", "rank", 1.0, 16)),
        *(("silent", "halves", "difference", 0.0, 2), ("silent", "wired", "rank", np.nan, 16)),
        *(("wrong", "halves", "difference", 0.1, 2), ("wrong", "wired", "rank", 4.0, 8)),
    ]
    planted = pd.DataFrame(rows, columns="method plant statistic value n".split())
    figure = check_plots.planted_heatmap(planted, ideals={"difference": 0.0})
    ax = figure.axes[0]
    assert labels_of(ax.yaxis) == ["exact", "noisy", "random", "silent", "wrong (n=8)"]
    assert labels_of(ax.xaxis) == ["halves: difference (ideal 0, n=2)", "wired: rank (ideal 1, n=16)"]
    assert "best first" not in ax.get_title() and "equal ones by name" in ax.get_title()


# ---- seeds_side_by_side ----


def test_seeds_side_by_side_draw_each_model(tables):
    layers, methods = tables["layers"], tables["methods"]
    figure = seed_plots.seeds_side_by_side(layers, methods, truth="ablation_mean")
    left, right = figure.axes
    models = ["seed 1", "seed 2", "seed 3"]
    assert legend_of(figure) == models
    chosen = methods.query("truth == 'ablation_mean'").pivot(index="method", columns="model", values="spearman")
    order = chosen.mean(axis=1).sort_values(ascending=False).index
    assert labels_of(right.yaxis) == list(order)
    for at, model in enumerate(models):
        line = next(line for line in left.lines if line.get_label() == model)
        rows = layers[(layers["truth"] == "ablation_mean") & (layers["model"] == model)]
        assert line.get_ydata().tolist() == rows["effect_var_pct"].tolist()
        dots = next(c for c in right.collections if c.get_label() == model).get_offsets()
        assert dots[:, 0].tolist() == chosen.loc[order, model].tolist()
        assert np.rint(dots[:, 1]).tolist() == list(range(len(order)))
        assert np.allclose(dots[:, 1] - np.rint(dots[:, 1]), (-0.26, 0, 0.26)[at])
    assert left.get_ylabel().startswith("mean effect of mean ablation")
    assert right.get_xlabel() == "Spearman ρ with ablation_mean"


# ---- what must never happen ----

BROKEN = [
    lambda t: check_plots.removal_curves(t["curves"].drop(columns="area")),
    lambda t: check_plots.removal_curves(t["curves"].query("order == 'most_first'")),
    lambda t: check_plots.removal_curves(t["curves"], methods=["no_such_method"]),
    lambda t: check_plots.removal_curves(pd.concat([t["curves"]] * 2)),
    lambda t: knockout_plots.knockout_table(t["knockout"].drop(columns="ci_low")),
    lambda t: knockout_plots.knockout_table(t["knockout"], regions=["frame"]),
    lambda t: knockout_plots.knockout_table(pd.concat([t["knockout"]] * 2)),
    lambda t: knockout_plots.mass_against_knockout(t["knockout"].drop(columns="mass")),
    lambda t: check_plots.randomised_bars(t["randomised"].drop(columns="spearman_with_own")),
    lambda t: check_plots.randomised_bars(pd.concat([t["randomised"]] * 2)),
    lambda t: check_plots.sensitivity_heatmap(t["sensitivity"].drop(columns="top_10_kept")),
    lambda t: check_plots.sensitivity_heatmap(t["sensitivity"].iloc[:0]),
    lambda t: check_plots.planted_heatmap(t["planted"].drop(columns="plant")),
    lambda t: check_plots.planted_heatmap(pd.concat([t["planted"]] * 2)),
    lambda t: seed_plots.seeds_side_by_side(t["layers"].drop(columns="model"), t["methods"]),
    lambda t: seed_plots.seeds_side_by_side(t["layers"], t["methods"], truth="ablation_max"),
    lambda t: seed_plots.seeds_side_by_side(t["layers"], pd.concat([t["methods"]] * 2)),
]
NAMES = "curves|knockout|randomised|sensitivity|planted|layers_by_seed|methods_by_seed"


@pytest.mark.parametrize("broken", BROKEN)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tables, broken):
    with pytest.raises(ValueError, match=rf"^({NAMES}): ") as caught:
        broken(tables)
    assert "\n" not in str(caught.value)


def cut_off(figure) -> list[str]:
    """Texts that leave the figure, ticks outside the limits aside."""
    written = [*figure.texts]
    for ax in figure.axes:
        written += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            written += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in written if text.get_text() and text.get_visible()]
    edge = figure.bbox.padded(1)
    return [name for name, box in boxes if not (edge.contains(*box.min) and edge.contains(*box.max))]


def everything(tables):
    return [
        check_plots.removal_curves(tables["curves"]),
        knockout_plots.knockout_table(tables["knockout"]),
        knockout_plots.mass_against_knockout(tables["knockout"]),
        check_plots.randomised_bars(tables["randomised"]),
        check_plots.sensitivity_heatmap(tables["sensitivity"]),
        check_plots.planted_heatmap(tables["planted"]),
        seed_plots.seeds_side_by_side(tables["layers"], tables["methods"]),
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["reference", "large", "one of each", "no values"])
def test_every_figure_draws_without_a_warning_or_a_cut_and_leaves_its_table(kind):
    tables = check_tables(
        *{"large": (12, 12), "one of each": (1, 1)}.get(kind, (12, 6)),
        methods={"reference": METHODS, "one of each": ("layer_ig",)}.get(kind, METHODS[::3]),
    )
    if kind == "no values":
        for table in tables.values():
            table[[c for c in table.columns if table[c].dtype == float]] = np.nan
    before = {name: table.copy() for name, table in tables.items()}
    for figure in everything(tables):
        figure.draw_without_rendering()
        assert not cut_off(figure)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, before[name])


def joint_table():
    groups = [f"0-{last}" for last in range(1, 12)] + ["5-10", "5-11"]
    names = [("layer", str(layer)) for layer in range(12)] + [("group", name) for name in groups]
    rng = np.random.default_rng(2)
    single = rng.gamma(0.5, 4.0, len(names)) - 0.3
    joint = single * rng.uniform(0.5, 6, len(names))
    columns = {"joint_var_pct": joint, "ci_low": joint - 0.4 * np.abs(joint), "ci_high": joint + 0.7 * np.abs(joint)}
    columns |= {"sum_of_single_var_pct": single, "sum_ci_low": single - 0.2, "sum_ci_high": single + 0.3, "n": 32}
    return pd.DataFrame(names, columns=["level", "layers"]).assign(**columns)


def test_joint_removal_stands_beside_the_sum_with_the_intervals_of_the_table():
    table = joint_table()
    figure = check_plots.joint_removal(table)
    layers, groups = figure.axes
    assert layers.get_xlabel() == "all heads of layer" and groups.get_xlabel() == "all heads of layers"
    assert "% of the label variance" in layers.get_ylabel()
    for panel, level in ((layers, "layer"), (groups, "group")):
        half = table[table["level"] == level]
        assert [label.get_text() for label in panel.get_xticklabels()] == half["layers"].tolist()
        lines = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
        np.testing.assert_array_equal(lines["together"].get_ydata(), half["joint_var_pct"])
        np.testing.assert_array_equal(lines["one at a time, added up"].get_ydata(), half["sum_of_single_var_pct"])
        apart, together = (
            np.array([segment[:, 1] for segment in collection.get_segments()]) for collection in panel.collections
        )
        np.testing.assert_array_equal(apart, half[["sum_ci_low", "sum_ci_high"]])
        np.testing.assert_array_equal(together, half[["ci_low", "ci_high"]])
        low, high = panel.get_ylim()
        assert low <= half["ci_low"].min() and half["ci_high"].max() <= high
    assert layers.get_ylim() == groups.get_ylim()


def test_joint_removal_of_a_model_of_one_layer_has_one_panel():
    table = joint_table().head(1)
    assert len(check_plots.joint_removal(table).axes) == 1
    with pytest.raises(ValueError, match="joint_removal: more than one row for a level and its layers"):
        check_plots.joint_removal(pd.concat([table, table]))
    with pytest.raises(ValueError, match=r"joint_removal: missing column\(s\) sum_ci_high"):
        check_plots.joint_removal(table.drop(columns="sum_ci_high"))
