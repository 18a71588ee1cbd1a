"""Figures of the league: the data on the artists. `league_tables` makes the tables without a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import league_plots, method_plots
from analysis.captions import names_with_n, pictures_told
from analysis.cells import CONTROL_INK

FAMILIES = {
    "gates": {
        **{"gate_ig_out": 64, "gate_ixg_out": 7, "gate_ig": 48, "gate_ixg": 3, "gate_saliency": 3, "gate_ixg_abs": 3},
        "shapley_values": 720,
    },
    "layers": {
        **{"conductance_out": 128, "layer_conductance": 48, "layer_ig": 48, "layer_deeplift": 6},
        **{"layer_gradient_shap": 24, "internal_influence": 48, "layer_activation": 1},
    },
    "attention": {
        **{"cls_mass": 1, "entropy": 1, "max_weight": 1, "attention_distance": 1, "value_norm": 1.2},
        "rollout_drop": 1.5,
    },
    "attention x gradient": {"chefer": 3, "attention_gradient": 3},
    "control": {"random": 0, "layer_index": 0, "weight_norm": 0, "noise_gradient": 3},
}
TRUTHS = ("ablation_zero", "ablation_mean", "ablation_resample", "ablation_counterfactual", "shapley")


def league_tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables shaped like a run's league: 26 methods under five truths, good ones dearer, some on fewer pictures."""
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    agreement: list[tuple] = []
    for family, members in FAMILIES.items():
        for method, forwards in members.items():
            control = family == "control"
            skill = rng.normal(0, 0.1) if control else min(0.95, 0.35 + 0.12 * np.log1p(forwards) + rng.normal(0, 0.15))
            n = 32 if forwards > 100 else 256
            row = {"method": method, "family": family, "is_control": control, "n": n, "forwards": float(forwards)}
            row |= {"spearman": skill, "spearman_ci_low": skill - 0.12, "spearman_ci_high": min(1, skill + 0.08)}
            row |= {"within_layers": skill - 0.1, "value_cross": skill - 0.05, "noise_ceiling": 0.93}
            row |= {"difference_from_best": 0.0, "p_holm": 0.5, "same_as": "gate_ixg" if method == "layer_ig" else ""}
            row["ablation_at_cost_matched"] = 0.9 * (1 - np.exp(-forwards / 60)) if forwards else np.nan
            row["beats_ablation_at_cost"] = np.nan if control else row["value_cross"] > row["ablation_at_cost_matched"]
            rows.append(row)
            for at, truth in enumerate(TRUTHS):
                value = skill - 0.04 * at + rng.normal(0, 0.03)
                bounds = (value - 0.1, value + 0.08, value - 0.05, value - 0.12, value + 0.02, 0.93)
                agreement += [
                    (method, truth, "mean", "spearman", value, *bounds, n),
                    (method, truth, "mean", "spearman_within_layers", value - 0.1, *bounds, n),
                    (method, truth, "trimmed", "spearman", value + 0.01, *bounds, n),
                ]
    league = pd.DataFrame(rows)
    names = "method truth estimator statistic value ci_low ci_high value_cross cross_ci_low cross_ci_high"
    names += " noise_ceiling n"
    table = pd.DataFrame(agreement, columns=names.split())
    for truth in TRUTHS:
        chosen = table.query("truth == @truth and estimator == 'mean' and statistic == 'spearman'")
        league[f"rank_{truth}"] = chosen.set_index("method")["value"].rank(ascending=False)[league["method"]].to_numpy()
    pairs: list[tuple] = []
    for estimator in ("mean", "trimmed"):
        for one in range(len(TRUTHS)):
            for other in range(one, len(TRUTHS)):
                value = 0.92 - 0.1 * (other - one) - 0.02 * other
                kinds = ("spearman_split_half",) if one == other else ("spearman", "kendall")
                for kind in kinds:
                    ends = (value - 0.05, value + 0.03)
                    pairs.append(
                        (TRUTHS[one], TRUTHS[other], estimator, kind, value - 0.2 * (kind == "kendall"), *ends, 256)
                    )
    truths = pd.DataFrame(pairs, columns="truth_a truth_b estimator statistic value ci_low ci_high n".split())
    return {"league": league, "agreement": table, "truths": truths}


@pytest.fixture(scope="module")
def tables():
    return league_tables()


def labels_of(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- truth_matrix ----


def test_truth_matrix_is_symmetric_with_the_split_half_on_the_framed_diagonal(tables):
    ax = league_plots.truth_matrix(tables["truths"].sample(frac=1, random_state=2).sort_values("truth_a"))
    names = [f"ablation_{n}" if n != "shapley" else n for n in labels_of(ax.yaxis)]
    grid = pd.DataFrame(ax.images[0].get_array(), index=names, columns=names)
    means = tables["truths"].query("estimator == 'mean'")
    for row in means[means["statistic"] != "kendall"].itertuples():
        assert grid.loc[row.truth_a, row.truth_b] == grid.loc[row.truth_b, row.truth_a] == row.value
    frames = sorted(patch.get_xy() for patch in ax.patches)
    assert np.allclose(frames, [(at - 0.46, at - 0.46) for at in range(5)])
    assert ax.images[0].norm.vmin == -1 and ax.images[0].norm.vmax == 1
    assert "256 pictures" in ax.get_title()


def test_truth_matrix_writes_the_interval_and_keeps_both_orders_of_a_pair():
    rows = [("zero", "mean", 0.8, 0.7, 0.9), ("mean", "zero", 0.6, -0.5, np.nan)]
    rows = [(a, b, "mean", "spearman", value, low, high, 64) for a, b, value, low, high in rows]
    names = "truth_a truth_b estimator statistic value ci_low ci_high n"
    ax = league_plots.truth_matrix(pd.DataFrame(rows, columns=names.split()))
    assert [text.get_text() for text in ax.texts] == ["–", "0.80\n[0.70, 0.90]", "0.60", "–"]


def test_truth_matrix_takes_another_statistic_and_estimator(tables):
    ax = league_plots.truth_matrix(tables["truths"], estimator="trimmed", statistic="kendall")
    assert ax.images[0].get_array()[0, 1] == pytest.approx(0.92 - 0.1 - 0.02 - 0.2)
    assert ax.images[0].get_array()[1, 1] == pytest.approx(0.92 - 0.02)  # the split half is what there is


# ---- league_heatmap ----


def test_league_heatmap_orders_by_the_league_and_puts_each_number_in_its_cell(tables):
    league = tables["league"]
    figure = league_plots.league_heatmap(tables["agreement"].sample(frac=1, random_state=0), league, truths=TRUTHS)
    left, right = figure.axes[:2]
    ordered = league.sort_values("value_cross", ascending=False, kind="stable")
    rows = tables["agreement"].query("estimator == 'mean' and statistic == 'spearman'")
    values = rows.pivot(index="method", columns="truth", values="value_cross").loc[ordered["method"], list(TRUTHS)]
    assert left.images[0].get_array().tolist() == values.to_numpy().tolist()
    assert right.images[0].get_array().tolist() == ordered[[f"rank_{t}" for t in TRUTHS]].to_numpy().tolist()
    assert labels_of(left.xaxis) == ["zero", "mean", "resample", "counterfactual", "shapley"]
    assert [text.get_text() for text in right.texts[:5]] == [f"{ordered[f'rank_{t}'].iloc[0]:g}" for t in TRUTHS]


def test_league_heatmap_marks_duplicates_fewer_pictures_and_controls(tables):
    league = tables["league"]
    left = league_plots.league_heatmap(tables["agreement"], league).axes[0]
    names = labels_of(left.yaxis)
    assert [name for name in names if "=" in name and "n=" not in name] == ["layer_ig  = gate_ixg"]
    assert {name for name in names if "(n=32)" in name} == {"shapley_values (n=32)", "conductance_out (n=32)"}
    grey = {t.get_text() for t in left.get_yticklabels() if t.get_color() == CONTROL_INK}
    assert grey == set(FAMILIES["control"])


def test_league_heatmap_without_ranks_or_values_draws_them_as_missing(tables):
    league = tables["league"].drop(columns="rank_shapley").assign(same_as=np.nan)
    league.loc[3, "value_cross"] = np.nan
    agreement = tables["agreement"].query("method != 'chefer'")
    figure = league_plots.league_heatmap(agreement, league, truths=["shapley"])
    left, right = figure.axes[:2]
    names = labels_of(left.yaxis)
    assert names[-1] == league["method"][3]  # what has no value comes last
    assert left.texts[names.index("chefer")].get_text() == "–"
    assert {text.get_text() for text in right.texts} == {"–"}


# ---- cost_front ----


def test_pareto_front_against_the_definition():
    rng = np.random.default_rng(0)
    cost, gain = rng.integers(1, 6, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    gain[3] = np.nan
    front = league_plots.pareto_front(cost, gain)
    kept = {(cost[at], gain[at]) for at in front}
    beaten = (cost <= cost[:, None]) & (gain >= gain[:, None]) & ((cost < cost[:, None]) | (gain > gain[:, None]))
    assert kept == {(c, g) for c, g, out in zip(cost, gain, beaten.any(axis=1), strict=True) if not out and g == g}
    assert len(kept) == len(front) and (np.diff(cost[front]) > 0).all() and (np.diff(gain[front]) > 0).all()
    assert len(league_plots.pareto_front(np.array([np.nan]), np.array([1.0]))) == 0


def points_of(ax, label) -> list[list[float]]:
    return next(c for c in ax.collections if c.get_label() == label).get_offsets().tolist()


def test_cost_front_places_methods_controls_and_the_price_of_nothing(tables):
    league = tables["league"]
    ax = league_plots.cost_front(league)
    assert ax.get_xscale() == "log"
    gates = league[league["family"] == "gates"]
    assert points_of(ax, "gates") == gates[["forwards", "value_cross"]].to_numpy().tolist()
    at_nothing = league["forwards"].replace(0, 0.25)[league["is_control"]]
    assert [x for x, _ in points_of(ax, "control")] == at_nothing.tolist()
    ax.figure.draw_without_rendering()
    assert labels_of(ax.xaxis) == ["0", "1", "10", "100", "1000"]
    assert ax.get_xticks()[0] == 0.25
    front = next(line for line in ax.lines if line.get_label() == league_plots.FRONT)
    best = 0.0
    for x, y in zip(front.get_xdata()[:-1], front.get_ydata()[:-1], strict=True):
        affordable = league[~league["is_control"] & (league["forwards"] <= x)]
        assert y == affordable["value_cross"].max() > best
        best = y


def test_cost_front_draws_ablation_at_the_same_price_once_for_each_price(tables):
    league = tables["league"]
    line = next(line for line in league_plots.cost_front(league).lines if line.get_label().startswith("ablation"))
    paid = league.dropna(subset=["ablation_at_cost_matched"]).drop_duplicates("forwards").sort_values("forwards")
    assert line.get_xdata().tolist() == paid["forwards"].tolist()
    assert np.allclose(line.get_ydata(), paid["ablation_at_cost_matched"])
    without = league_plots.cost_front(league.drop(columns="ablation_at_cost_matched"))
    assert not any(line.get_label().startswith("ablation") for line in without.lines)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cost_front_names_every_method_and_no_name_touches_another_or_a_point(seed):
    league = league_tables(seed)["league"]
    ax = league_plots.cost_front(league)
    ax.figure.draw_without_rendering()
    labels = [text for text in ax.texts if text.get_text()]
    assert sorted(label.get_text() for label in labels) == sorted(names_with_n(league.set_index("method")))
    boxes = [label.get_window_extent() for label in labels]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(len(boxes)) for j in range(i))
    frame = ax.get_window_extent()
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1 for box in boxes)
    cost = league["forwards"].replace(0, league["forwards"][league["forwards"] > 0].min() / 4)
    for column in ("value_cross", "spearman"):
        points = ax.transData.transform(np.column_stack([cost, league[column]]))
        assert not any(box.contains(*point) for box in boxes for point in points)
    drawn = [line for line in ax.lines if line.get_label() in (league_plots.FRONT, "ablation at that price")]
    assert len(drawn) == 2
    for line in drawn:  # a name that a line crosses reads as struck out
        path = line.get_transform().transform_path(line.get_path())
        assert not any(path.intersects_bbox(box, filled=False) for box in boxes if line.get_linestyle() == "--")


def test_cost_front_says_what_it_holds(tables):
    league = tables["league"]
    ax = league_plots.cost_front(league)
    assert "logarithmic right of the dotted line; 0: no pass" in ax.get_xlabel()
    assert "n: number of pictures, where it is below 256" in ax.get_xlabel()
    assert ax.get_ylabel() == "Spearman ρ with zero ablation (method and truth on different pictures)"
    assert "shapley" in league_plots.cost_front(league, truth="shapley").get_ylabel()
    assert "best for its price, controls left out" in [text.get_text() for text in ax.get_legend().get_texts()]
    paid = league_plots.cost_front(league[league["forwards"] > 0])
    assert "dotted" not in paid.get_xlabel()


def test_league_and_truths_say_what_their_numbers_are_of(tables):
    fewer = {name: table.copy() for name, table in tables.items()}
    fewer["agreement"].loc[fewer["agreement"]["truth"] == "shapley", "n"] = 16
    shapley = fewer["truths"][["truth_a", "truth_b"]].eq("shapley").any(axis=1)
    fewer["truths"].loc[shapley, "n"] = 16
    figure = league_plots.league_heatmap(fewer["agreement"], fewer["league"])
    left, right = figure.axes[:2]
    for axis in (left.xaxis, right.xaxis):
        assert labels_of(axis) == ["zero", "mean", "resample", "counterfactual", "shapley (n=16)"]
    assert "same pictures" in right.get_title() and "different pictures" in left.get_title()
    bar = figure.axes[2]
    assert bar.get_ylabel() == "left: Spearman\n(effects averaged over pictures)"
    figure.draw_without_rendering()
    assert bar.get_position().x0 > right.get_position().x1
    ax = league_plots.truth_matrix(fewer["truths"])
    assert labels_of(ax.xaxis)[-1] == "shapley (n=16)" and labels_of(ax.yaxis)[0] == "zero"
    assert ax.get_title().startswith("Truths against each other: effects averaged over pictures (256 pictures)")


def test_cost_front_counts_what_it_cannot_place(tables):
    league = tables["league"].copy()
    league.loc[0, "forwards"] = np.nan
    league.loc[1, "value_cross"] = np.nan
    ax = league_plots.cost_front(league)
    assert "(2 without a price or a value)" in ax.get_title()
    assert len([text for text in ax.texts if text.get_text()]) == len(league) - 2


# ---- names and what must never happen ----


def test_names_bear_their_number_of_pictures_only_where_it_is_smaller():
    table = pd.DataFrame({"n": [256, 32, 256]}, index=["a", "b", "c"])
    assert names_with_n(table) == ["a", "b (n=32)", "c"]
    assert names_with_n(table[[]]) == ["a", "b", "c"]
    assert names_with_n(table.assign(n=[np.nan, 16, 32])) == ["a", "b (n=16)", "c"]


def test_bars_and_scatter_of_many_methods_say_which_were_judged_on_fewer_pictures(tables):
    agreement, league = tables["agreement"], tables["league"]
    names = labels_of(method_plots.agreement_bars(agreement).axes[0].yaxis)
    fewer = ["conductance_out (n=32)", "shapley_values (n=32)"]
    assert len(names) == 26 and sorted(name for name in names if "n=" in name) == fewer
    card = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "ablation_zero_var_pct": [1.0, 2.0, 3.0]})
    card = card.assign(**{f"score_{name}": [1.0, 2.0, 3.0] for name in league["method"]})
    figure = method_plots.method_scatter(card, agreement)
    titles = [ax.get_title().splitlines() for ax in figure.axes if ax.get_title()]
    told = sorted(f"{title[0]} (n=32)" for title in titles if title[-1] == "(same 32 pictures)")
    assert len(titles) == 26 and told == fewer
    assert figure.get_figwidth() <= 9.6


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([128, 128], "The first 128 pictures."),
        ([16, 16], "The first 16 pictures, indicative only."),
        ([2, 16], "2 to 16 pictures, indicative only."),
        ([4, 128], "4 to 128 pictures, indicative only below 128."),
        ([128, 256], "128 to 256 pictures."),
    ],
)
def test_captions_tell_how_many_pictures_rows_rest_on(counts, told):
    assert pictures_told(pd.DataFrame({"n": counts})) == told


BROKEN = [
    lambda t: league_plots.truth_matrix(t["truths"].drop(columns="truth_b")),
    lambda t: league_plots.truth_matrix(t["truths"], estimator="median"),
    lambda t: league_plots.truth_matrix(t["truths"].query("statistic == 'kendall'")),
    lambda t: league_plots.truth_matrix(pd.concat([t["truths"]] * 2)),
    lambda t: league_plots.league_heatmap(t["agreement"], t["league"].drop(columns="same_as")),
    lambda t: league_plots.league_heatmap(t["agreement"], pd.concat([t["league"]] * 2)),
    lambda t: league_plots.league_heatmap(pd.concat([t["agreement"]] * 2), t["league"]),
    lambda t: league_plots.league_heatmap(t["agreement"], t["league"], truths=["ablation_max"]),
    lambda t: league_plots.cost_front(t["league"].drop(columns="forwards")),
    lambda t: league_plots.cost_front(t["league"].iloc[:0]),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tables, broken):
    with pytest.raises(ValueError, match=r"^(truths|league|agreement): ") as caught:
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
    axes = [league_plots.truth_matrix(tables["truths"]), league_plots.cost_front(tables["league"])]
    return [*(ax.figure for ax in axes), league_plots.league_heatmap(tables["agreement"], tables["league"])]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["all", "one method", "no values", "only free"])
def test_every_figure_draws_without_a_warning_or_a_cut_and_leaves_its_table(tables, kind):
    tables = {name: table.copy() for name, table in tables.items()}
    for name in ("league", "agreement"):
        if kind == "one method":
            tables[name] = tables[name][tables[name]["method"] == "chefer"].reset_index(drop=True)
    for table in tables.values():
        if kind == "no values":
            table[[c for c in table.columns if table[c].dtype == float]] = np.nan
    if kind == "only free":
        tables["league"]["forwards"] = 0.0
    before = {name: table.copy() for name, table in tables.items()}
    for figure in everything(tables):
        figure.draw_without_rendering()
        assert not cut_off(figure)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, before[name])
