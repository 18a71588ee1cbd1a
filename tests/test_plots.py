"""Figures: the data on the artists, not the pixels. `synthetic_tables` makes a run's tables without a run."""

from __future__ import annotations

import io
import os
import xml.etree.ElementTree as ElementTree

import matplotlib.patches
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import Normalize, SymLogNorm, to_rgba
from matplotlib.figure import Figure
from PIL import Image

from analysis import artists, method_plots, plots
from analysis.cells import CONTROL_INK
from analysis.point_labels import LEADER, label_points

METHODS = (
    *("gate_ig_out", "gate_ixg_out", "conductance_out", "gate_ig", "layer_conductance", "gate_ixg"),
    *("gate_saliency", "value_norm", "chefer", "rollout_drop", "cls_mass", "layer_index", "random"),
)
REGIONS = (
    *("chirp", "title", "x_label", "y_label", "x_ticks", "y_ticks"),
    *("colorbar_label", "colorbar_ticks", "colorbar"),
)
EFFECT = "ablation_zero_var_pct"
LARGEST = 38.2


def synthetic_tables(num_layers: int = 12, num_heads: int = 6, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables shaped like a run's, with heavy-tailed effects: a few heads carry most, some are negative."""
    rng = np.random.default_rng(seed)
    layer, head = (axis.ravel() for axis in np.indices((num_layers, num_heads)))
    count = len(layer)
    effect = rng.standard_t(1.6, count) * 0.4 * (0.3 + layer / num_layers) + 0.2
    effect[rng.integers(count)] = LARGEST
    half = 0.05 + 0.35 * np.abs(effect) * rng.uniform(0.3, 1.5, count)
    card = pd.DataFrame({"layer": layer, "head": head, EFFECT: effect})
    card[f"{EFFECT}_ci_low"], card[f"{EFFECT}_ci_high"] = effect - half, effect + 1.4 * half
    card[f"{EFFECT}_trimmed"] = 0.6 * effect
    for suffix in ("", "_ci_low", "_ci_high", "_trimmed"):
        card[f"ablation_zero_mse_pct{suffix}"] = 12 * card[f"{EFFECT}{suffix}"]
    card["ablation_zero_start_freq_hz2"] = 8.3 * effect
    ranks = pd.Series(effect).rank().to_numpy()
    for at, method in enumerate(METHODS):
        order = np.argsort(np.argsort(ranks + rng.normal(0, 2 + at * count / 10, count)))
        card[f"score_{method}"] = np.sort(effect)[order] * 10.0 ** -(at % 4) if at % 2 else order / count
        card[f"rank_{method}"] = count - order
    for region in ("chirp", "text", "colorbar"):
        card[f"iou_{region}"] = rng.beta(0.6, 4, count)
        card[f"iou_{region}_adjusted"] = card[f"iou_{region}"] - 0.04

    rows: list[tuple] = []
    for at, method in enumerate(METHODS):
        for statistic, shift in (("spearman", 0.0), ("spearman_within_layers", 0.12), ("kendall", 0.2)):
            value = 0.0 if method == "random" else 0.93 - 0.075 * at - shift
            cross = value - 0.05 + 0.02 * (at % 3)  # not quite in the order of the same pictures
            bounds = (value - 0.11, min(value + 0.07, 1), cross, cross - 0.08, min(cross + 0.06, 1), 0.91 - shift)
            rows.append((method, "ablation_zero", "mean", statistic, value, *bounds, 256))
    names = "method truth estimator statistic value ci_low ci_high value_cross cross_ci_low cross_ci_high"
    names += " noise_ceiling n"
    agreement = pd.DataFrame(rows, columns=names.split())

    rows = []
    for query in ("cls", "mean"):
        for metric in ("iou", "lift"):
            for region in REGIONS:
                for one, other, value in zip(layer, head, rng.beta(0.6, 5, count) - 0.03, strict=True):
                    numbers = (value + 0.04, 0.04, value, value - 0.03, value + 0.03, 256, 0.01, 0.02)
                    rows.append((one, other, query, region, metric, *numbers))
    names = "layer head query region metric value chance adjusted ci_low ci_high n p q_value"
    localization = pd.DataFrame(rows, columns=names.split())

    rows = []
    values = {"saliency": 0.09, "integrated_gradients": 0.12, "rollout": 0.04, "chefer": 0.11}
    for region in ("chirp", "text"):
        for metric, ceiling in (("iou", 0.17), ("mass", np.nan)):
            for method, value in values.items():
                numbers = (value, 0.01, value - 0.01, value - 0.012, value + 0.012, 256, ceiling)
                rows.append((method, region, metric, *numbers))
    names = "method region metric value chance adjusted ci_low ci_high n ceiling"
    pixels = pd.DataFrame(rows, columns=names.split())
    return {"scorecard": card, "agreement": agreement, "localization": localization, "pixels": pixels}


@pytest.fixture(scope="module")
def tables():
    return synthetic_tables()


def square(effects, **columns) -> pd.DataFrame:
    """A head scorecard from effects `[layer head]`."""
    effects = np.asarray(effects, dtype=float)
    layer, head = (axis.ravel() for axis in np.indices(effects.shape))
    return pd.DataFrame({"layer": layer, "head": head, EFFECT: effects.ravel(), **columns})


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- effect_heatmap ----


def test_effect_heatmap_puts_each_head_in_its_cell_whatever_the_order_of_rows():
    card = square([[1.0, -2.0, 3.0], [0.004, -0.004, 250.0]])
    ax = plots.effect_heatmap(card.sample(frac=1, random_state=1))
    assert ax.images[0].get_array().tolist() == [[1.0, -2.0, 3.0], [0.004, -0.004, 250.0]]
    assert texts(ax) == ["1.00", "−2.00", "3.00", "0.00", "0.00", "250"]
    assert [(text.get_position()) for text in ax.texts][:4] == [(0, 0), (1, 0), (2, 0), (0, 1)]


def test_effect_heatmap_marks_exactly_the_heads_whose_interval_excludes_zero():
    card = square([[1.0, 2.0], [-3.0, 0.5]])
    card[f"{EFFECT}_ci_low"], card[f"{EFFECT}_ci_high"] = [0.1, -0.1, -5.0, np.nan], [2.0, 4.0, -1.0, np.nan]
    ax = plots.effect_heatmap(card)
    offsets = np.rint(ax.collections[0].get_offsets()).astype(int)
    assert offsets.tolist() == [[0, 0], [0, 1]]  # (head, layer): L0H0 and L1H0
    assert "excludes 0" in ax.get_xlabel()


def test_effect_heatmap_without_intervals_marks_nothing_and_does_not_explain_a_mark():
    ax = plots.effect_heatmap(square([[1.0, 2.0]]))
    assert not ax.collections and ax.get_xlabel() == "head"


def test_effect_heatmap_colours_are_centred_on_zero_and_heavy_tails_are_declared(tables):
    ax = plots.effect_heatmap(tables["scorecard"])
    norm = ax.images[0].norm
    assert isinstance(norm, SymLogNorm)
    assert norm.vmax == LARGEST == -norm.vmin  # nothing is clipped
    assert norm(0.0) == pytest.approx(0.5)
    label = ax.figure.axes[1].get_ylabel()
    assert "symmetric-log" in label and f"±{norm.linthresh:g}" in label and "% of the label variance" in label


def test_effect_heatmap_without_heavy_tails_is_linear():
    ax = plots.effect_heatmap(square([[1.0, 2.0], [3.0, -4.0]]))
    assert type(ax.images[0].norm) is Normalize
    assert "log" not in ax.figure.axes[1].get_ylabel()


def test_effect_heatmap_draws_a_missing_head_as_missing():
    card = square([[1.0, np.nan], [3.0, 4.0]]).drop(index=3)  # L0H1 without a value, L1H1 without a row
    ax = plots.effect_heatmap(card)
    assert ax.images[0].get_array().mask.tolist() == [[False, True], [False, True]]
    assert texts(ax) == ["1.00", "–", "3.00", "–"]


def test_cell_text_is_white_on_dark_and_black_on_light():
    ax = plots.effect_heatmap(square([[10.0, 0.0]]))
    assert [text.get_color() for text in ax.texts] == ["white", "black"]
    card = square([[1.0, 2.0]], iou_chirp_adjusted=[0.01, 0.5])
    panel = plots.iou_heatmaps(card, regions=("chirp",)).axes[0]
    assert [text.get_color() for text in panel.texts] == ["white", "black"]  # violet, yellow


def test_a_given_axes_is_used_and_returned():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plots.effect_heatmap(square([[1.0, 2.0]]), ax=right) is right
    assert not left.images and len(right.images) == 1


# ---- iou_heatmaps ----


def test_iou_heatmaps_share_one_scale_from_chance_up(tables):
    figure = plots.iou_heatmaps(tables["scorecard"])
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title().splitlines()[0] for ax in panels] == ["chirp", "text", "colorbar"]
    columns = [f"iou_{region}_adjusted" for region in ("chirp", "text", "colorbar")]
    assert len({id(ax.images[0].norm) for ax in panels}) == 1
    assert panels[0].images[0].norm.vmin == 0
    assert panels[0].images[0].norm.vmax == tables["scorecard"][columns].max().max()
    text = panels[1].images[0].get_array()
    assert text.ravel().tolist() == tables["scorecard"]["iou_text_adjusted"].tolist()


def test_iou_heatmaps_name_the_best_head(tables):
    card = tables["scorecard"]
    best = card.loc[card["iou_chirp_adjusted"].idxmax()]
    title = plots.iou_heatmaps(card).axes[0].get_title()
    assert title == f"chirp\nbest L{best['layer']:.0f}H{best['head']:.0f}: {best['iou_chirp_adjusted']:.2f}"


def test_iou_heatmaps_of_ten_regions_stand_in_two_rows_of_five_with_plain_names(tables):
    rows = tables["localization"]
    more = rows[rows["region"] == "x_ticks"].assign(region="plot_background")
    figure = plots.iou_heatmaps(pd.concat([rows, more]), regions=(*REGIONS, "plot_background"))
    panels = [ax for ax in figure.axes if ax.images]
    assert panels[0].get_subplotspec().get_gridspec().get_geometry() == (2, 5)
    assert [ax.get_title().splitlines()[0] for ax in panels][2::7] == ["x label", "plot background"]
    assert figure.get_figwidth() <= 9.6
    assert figure.axes[-1].get_ylabel().startswith("adjusted IoU")


def test_iou_heatmaps_of_the_localization_table_take_the_chosen_rows(tables):
    rows = tables["localization"]
    figure = plots.iou_heatmaps(rows, regions=("x_ticks",), query="mean", metric="lift")
    chosen = rows[(rows["query"] == "mean") & (rows["metric"] == "lift") & (rows["region"] == "x_ticks")]
    assert figure.axes[0].images[0].get_array().ravel().tolist() == chosen["adjusted"].tolist()


def test_iou_below_chance_is_grey_and_a_missing_region_says_so():
    card = square([[1.0, 2.0]], iou_chirp_adjusted=[-0.1, 0.3], iou_text_adjusted=[np.nan, np.nan])
    figure = plots.iou_heatmaps(card, regions=("chirp", "text"))
    image = figure.axes[0].images[0]
    assert image.to_rgba([-0.1])[0].tolist() == list(to_rgba("0.88"))
    assert texts(figure.axes[0]) == ["−.10", ".30"]
    assert figure.axes[1].get_title() == "text\nno values" and texts(figure.axes[1]) == ["–", "–"]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_iou_heatmaps_label_the_outer_edge_only(tables, count):
    figure = plots.iou_heatmaps(tables["localization"], regions=REGIONS[:count])
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == count
    for panel in panels:  # a panel with no neighbour below has numbers on its x axis
        spot = panel.get_subplotspec()
        others = {other.get_subplotspec().num1 for other in panels}
        below = spot.num1 + spot.get_gridspec().ncols in others
        assert bool(panel.get_xlabel()) is not below
        assert panel.xaxis.get_tick_params()["labelbottom"] is not below
        assert bool(panel.get_ylabel()) is spot.is_first_col()


# ---- head_ranking ----


def test_head_ranking_sorts_names_and_summarises_the_rest(tables):
    card = tables["scorecard"]
    ordered = card.sort_values(EFFECT, ascending=False)
    figure = plots.head_ranking(card, top=30)
    named, every = figure.axes[:2]
    names = [label.get_text() for label in named.get_yticklabels()]
    assert names == [f"L{row.layer}H{row.head}" for row in ordered.head(30).itertuples()]
    mean = next(c for c in named.collections if c.get_label().startswith("mean"))
    assert mean.get_offsets()[:, 0].tolist() == ordered[EFFECT].head(30).tolist()
    assert mean.get_array().tolist() == ordered["layer"].head(30).tolist()
    trimmed = next(c for c in named.collections if c.get_label() == "trimmed mean")
    assert trimmed.get_offsets()[:, 0].tolist() == ordered[f"{EFFECT}_trimmed"].head(30).tolist()
    bars = next(c for c in named.collections if c.get_label() == "interval").get_segments()
    assert [bar[0][0] for bar in bars] == ordered[f"{EFFECT}_ci_low"].head(30).tolist()
    assert [bar[1][0] for bar in bars] == ordered[f"{EFFECT}_ci_high"].head(30).tolist()
    everyone = every.collections[-1].get_offsets()
    assert everyone.tolist() == [[at + 1, value] for at, value in enumerate(ordered[EFFECT])]
    assert "the other 42" in every.get_title()
    low, high = named.get_ylim()
    assert low > high  # the first head on top


def test_head_ranking_of_few_heads_has_one_panel_and_leaves_out_heads_without_a_value():
    figure = plots.head_ranking(square([[3.0, np.nan], [5.0, 1.0]]))
    named = figure.axes[0]
    assert [label.get_text() for label in named.get_yticklabels()] == ["L1H0", "L0H0", "L1H1"]
    assert "(1 without a value)" in named.get_title()
    assert len(figure.axes) == 2  # the panel and the colour bar
    assert legend_of(figure) == ["mean (colour: layer)"]  # no interval, no trimmed mean in the table


def test_limits_follow_the_symmetric_log_scale(tables):
    named = plots.head_ranking(tables["scorecard"]).axes[0]
    assert named.get_xscale() == "symlog"
    smallest = tables["scorecard"].nlargest(30, EFFECT)[f"{EFFECT}_trimmed"].min()
    assert named.get_xlim()[0] > smallest - 0.5  # not five per cent of the largest effect below it


# ---- method_scatter ----


def test_method_scatter_shows_each_method_with_its_agreement(tables):
    card, agreement = tables["scorecard"], tables["agreement"]
    figure = method_plots.method_scatter(card, agreement)
    panels = [ax for ax in figure.axes if ax.collections and ax.get_title()]
    assert [ax.get_title().splitlines()[0] for ax in panels] == [*METHODS[:-1], "random"]
    assert panels[0].get_title() == "gate_ig_out\nρ = 0.93 [0.82, 1.00]"
    assert panels[-1].get_title() == "random\nρ = 0.00 [−0.11, 0.07]"
    for panel, method in zip(panels, METHODS, strict=True):
        points = panel.collections[0].get_offsets()
        assert points.tolist() == card[[f"score_{method}", EFFECT]].to_numpy().tolist()
    assert panels[1].get_xscale() == "symlog" and "symmetric log" in panels[1].get_xlabel()
    assert panels[0].get_xscale() == "linear" and panels[0].get_yscale() == "symlog"
    assert panels[0].get_ylabel() == "" and "symmetric log" in figure.get_supylabel()


def test_method_scatter_keeps_the_given_methods_and_says_when_one_was_not_compared(tables):
    card, agreement = tables["scorecard"].copy(), tables["agreement"]
    card["score_chefer"] = np.nan
    without = agreement[agreement["method"] != "chefer"]
    figure = method_plots.method_scatter(card, without, methods=["chefer", "random"], statistic="kendall")
    assert figure.axes[0].get_title() == "chefer\nnot compared" and texts(figure.axes[0]) == ["no values"]
    assert figure.axes[1].get_title().startswith("random\nkendall = ")


def test_method_scatter_says_that_rho_is_of_the_same_pictures_where_they_are_fewer(tables):
    agreement = tables["agreement"].copy()
    agreement.loc[agreement["method"] == "chefer", "n"] = 32
    figure = method_plots.method_scatter(tables["scorecard"], agreement)
    titles = {ax.get_title().splitlines()[0]: ax.get_title().splitlines()[1:] for ax in figure.axes if ax.get_title()}
    assert titles["chefer"][1:] == ["(same 32 pictures)"] and len(titles["random"]) == 1
    told = "ρ: scores and effects of the same pictures. Points: effects of all 256 pictures."
    assert figure.get_supxlabel() == told
    assert not method_plots.method_scatter(tables["scorecard"], tables["agreement"]).get_supxlabel()


# ---- agreement_bars ----


def test_agreement_bars_are_sorted_by_the_first_statistic_in_every_panel(tables):
    shuffled = tables["agreement"].sample(frac=1, random_state=3)
    figure = method_plots.agreement_bars(shuffled)
    first, second = figure.axes
    rows = tables["agreement"].query("statistic == 'spearman'").sort_values("value_cross", ascending=False)
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == rows["method"].tolist()
    assert [bar.get_width() for bar in first.patches] == rows["value_cross"].tolist()
    within = tables["agreement"].query("statistic == 'spearman_within_layers'").set_index("method")
    assert [bar.get_width() for bar in second.patches] == within.loc[names, "value_cross"].tolist()
    same = next(c for c in first.collections if c.get_label() == "the same pictures")
    assert same.get_offsets()[:, 0].tolist() == rows["value"].tolist()
    interval = next(c for c in first.collections if c.get_label() == "its 95 % interval")
    ends = [[segment[0][0], segment[1][0]] for segment in interval.get_segments()]
    assert ends == rows[["cross_ci_low", "cross_ci_high"]].to_numpy().tolist()
    ceiling = next(c for c in first.collections if "ceiling" in c.get_label())
    assert {segment[0][0] for segment in ceiling.get_segments()} == {0.91}


def test_agreement_bars_hatch_the_controls_alone(tables):
    first = method_plots.agreement_bars(tables["agreement"], controls=("random", "cls_mass")).axes[0]
    names = [label.get_text() for label in first.get_yticklabels()]
    hatched = {name for name, bar in zip(names, first.patches, strict=True) if bar.get_hatch()}
    assert hatched == {"random", "cls_mass"}


def test_agreement_bars_put_methods_without_a_value_last_and_say_so(tables):
    agreement = tables["agreement"].copy()
    agreement.loc[agreement["method"] == "gate_ig_out", "value_cross"] = np.nan
    first = method_plots.agreement_bars(agreement).axes[0]
    assert first.get_yticklabels()[-1].get_text() == "gate_ig_out"
    assert texts(first) == ["no value"]


def test_agreement_bars_name_the_truth_share_a_range_and_explain_n(tables):
    agreement = tables["agreement"].copy()
    agreement.loc[agreement["method"] == "chefer", "n"] = 32
    agreement.loc[agreement["statistic"] == "spearman_within_layers", "cross_ci_low"] -= 0.5
    figure = method_plots.agreement_bars(agreement)
    first, second = figure.axes
    assert first.get_xlabel() == "Spearman ρ with zero ablation, all heads"
    assert second.get_xlabel() == "Spearman ρ with zero ablation, within layers"
    assert first.get_xlim() == second.get_xlim() and first.get_xlim()[0] < agreement["cross_ci_low"].min()
    assert figure.legends[0].get_title().get_text() == "n: number of pictures, where it is below 256"
    assert not method_plots.agreement_bars(tables["agreement"]).legends[0].get_title().get_text()


def test_agreement_bars_draw_the_statistics_asked_for(tables):
    figure = method_plots.agreement_bars(tables["agreement"], statistics={"kendall": "Kendall τ-b"})
    assert [ax.get_xlabel() for ax in figure.axes] == ["Kendall τ-b"]


# ---- quadrant ----


def test_quadrant_places_heads_and_lines(tables):
    card = tables["scorecard"]
    ax = plots.quadrant(card, looks_line=0.1, effect_line=0.5)
    points = ax.collections[0].get_offsets()
    assert points.tolist() == card[["iou_chirp_adjusted", EFFECT]].to_numpy().tolist()
    upright, level = ax.lines[:2]
    assert set(upright.get_xdata()) == {0.1} and set(level.get_ydata()) == {0.5}


def test_quadrant_lines_default_to_the_medians(tables):
    card = tables["scorecard"]
    upright, level = plots.quadrant(card).lines[:2]
    assert upright.get_xdata()[0] == card["iou_chirp_adjusted"].median()
    assert level.get_ydata()[0] == card[EFFECT].median()


@pytest.mark.parametrize("shape", [(12, 6), (12, 12), (2, 2)], ids=str)
def test_quadrant_labels_the_outstanding_heads_and_no_label_touches_another(shape):
    card = synthetic_tables(*shape)["scorecard"]
    ax = plots.quadrant(card)
    ax.figure.draw_without_rendering()
    labels = [text for text in ax.texts if text.get_text().startswith("L")]
    names = [label.get_text() for label in labels]
    assert len(labels) == len(set(names)) >= min(14, len(card))
    for row in (card.loc[card[EFFECT].idxmax()], card.loc[card["iou_chirp_adjusted"].idxmax()]):
        assert f"L{row['layer']:.0f}H{row['head']:.0f}" in names
    boxes = [label.get_window_extent() for label in labels]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(len(boxes)) for j in range(i))
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    points = ax.transData.transform(card[["iou_chirp_adjusted", EFFECT]].to_numpy())
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_quadrant_counts_the_heads_it_cannot_place():
    card = square([[1.0, 2.0], [3.0, np.nan]], iou_chirp_adjusted=[0.1, np.nan, 0.2, 0.3])
    ax = plots.quadrant(card)
    assert "2 heads without a value" in ax.get_title()
    card["iou_chirp_adjusted"] = np.nan
    assert texts(plots.quadrant(card)) == ["no head has both values"]


def test_quadrant_says_what_its_lines_are_and_claims_no_more_than_they_tell(tables):
    ax = plots.quadrant(tables["scorecard"])
    assert ax.get_title().endswith("\ndashed: medians over heads")
    corners = [text for text in texts(ax) if "\n" in text]
    assert corners[0] == "helps more than the median head,\nlooks there less" and len(corners) == 4
    assert not any("not help" in text or "neither" in text for text in corners)
    given = plots.quadrant(tables["scorecard"], effect_line=0.5)
    assert "median" not in given.get_title() and "helps less than the dashed line,\nlooks there more" in texts(given)


def leaders_of(ax) -> set[tuple[float, float]]:
    """The points from which a line leads to a name."""
    return {tuple(text.xy) for text in ax.texts if text.get_label() == LEADER}


@pytest.mark.parametrize("seed", range(4))
def test_a_line_leads_to_every_name_that_is_far_or_nearer_to_another_point(seed):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(0, 0.12, (22, 2)), rng.normal(0, 2, (8, 2))])
    names = [f"name {at}" for at in range(len(points))]
    ax = artists.new_axes(None, 5, 4)
    ax.scatter(*points.T)
    label_points(ax, points, names, 30)
    led, scale = leaders_of(ax), ax.figure.dpi / 72
    pixels = ax.transData.transform(points)
    assert 0 < len(led) < 30
    for text in ax.texts:
        if not text.get_text():
            continue
        at = names.index(text.get_text())
        box = text.get_window_extent()
        gaps = np.hypot(*(np.maximum(0, np.maximum(box.min - pixels, pixels - box.max))).T) / scale
        if gaps[at] > 12 or np.delete(gaps, at).min() < gaps[at] - 2:
            assert tuple(points[at]) in led, text.get_text()
        elif gaps[at] < 6 and np.delete(gaps, at).min() > gaps[at] + 3:
            assert tuple(points[at]) not in led, text.get_text()


# ---- pixel_localization_bars, layer_profile ----


def test_pixel_localization_bars_show_value_chance_and_ceiling(tables):
    ax = method_plots.pixel_localization_bars(tables["pixels"])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["integrated_gradients", "chefer", "saliency", "rollout"]
    assert [bar.get_width() for bar in ax.patches] == [0.12, 0.11, 0.09, 0.04]
    lines = {c.get_label(): {segment[0][0] for segment in c.get_segments()} for c in ax.collections}
    assert lines["chance"] == {0.01} and lines[method_plots.PATCH_CEILING] == {0.17}
    chance = next(c for c in ax.collections if c.get_label() == "chance")
    assert chance.get_zorder() > max(bar.get_zorder() for bar in ax.patches) and ax.get_xlim()[0] < 0
    mass = method_plots.pixel_localization_bars(tables["pixels"], metric="mass")
    assert method_plots.PATCH_CEILING not in [text.get_text() for text in mass.get_legend().get_texts()]
    assert ax.get_title() == "Pixel methods: IoU with the chirp" and mass.get_xlabel() == "mass with the chirp"


def test_pixel_localization_bars_name_methods_plainly_with_controls_and_fewer_pictures(tables):
    pixels = tables["pixels"].assign(method="pixel_" + tables["pixels"]["method"])
    pixels.loc[pixels["method"] == "pixel_saliency", "n"] = 32
    ax = method_plots.pixel_localization_bars(pixels, controls=["pixel_rollout", "pixel_uniform"])
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == ["integrated_gradients", "chefer", "saliency (n=32)", "rollout"]
    assert [label.get_text() for label in labels if label.get_color() == CONTROL_INK] == ["rollout"]
    assert len({bar.get_facecolor() for bar in ax.patches[:3]}) == 1 != len({b.get_facecolor() for b in ax.patches})
    assert "n: number of pictures, where it is below 256" in ax.get_xlabel()


def test_layer_profile_of_an_array_is_the_mean_over_images_and_heads():
    effects = np.random.default_rng(0).normal(size=(40, 3, 2)) + np.arange(3)[:, None]
    ax = plots.layer_profile(effects, label="effect (%)")
    line = next(line for line in ax.lines if line.get_label() == plots.LAYER_MEAN)
    assert np.allclose(line.get_ydata(), effects.mean(axis=(0, 2)), rtol=0, atol=1e-14)
    dots = next(c for c in ax.collections if c.get_label() == "one head").get_offsets()[:, 1]
    assert np.allclose(dots, effects.mean(axis=0).ravel())
    bars = ax.collections[-1].get_segments()
    error = effects.mean(axis=2).std(axis=0) / np.sqrt(40)
    widths = np.array([bar[1][1] - bar[0][1] for bar in bars])
    assert np.allclose(widths, 2 * 1.96 * error, rtol=0.1)  # normal effects: the textbook interval
    assert ax.get_ylabel() == "effect (%)"


def test_layer_profile_of_a_table_takes_its_numbers():
    table = pd.DataFrame({"layer": [1, 0], "mean": [2.0, 1.0], "ci_low": [1.5, 0.0], "ci_high": [3.0, 1.2]})
    ax = plots.layer_profile(table)
    line = next(line for line in ax.lines if line.get_label() == plots.LAYER_MEAN)
    assert line.get_xdata().tolist() == [0, 1] and line.get_ydata().tolist() == [1.0, 2.0]
    assert [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()] == [
        [0.0, 1.2],
        [1.5, 3.0],
    ]


def test_layer_profile_is_linear_and_explains_its_bars_once():
    mean = np.array([0.05, 0.1, 0.08, 0.4, 0.5, 0.4, 2.8, 2.4])
    table = pd.DataFrame({"layer": range(8), "mean": mean, "ci_low": 0.1 * mean, "ci_high": 1.3 * mean})
    ax = plots.layer_profile(table, label="mean effect of zero ablation")
    assert ax.get_yscale() == "linear" and ax.get_ylabel() == "mean effect of zero ablation"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mean over heads with its 95 % interval"]
    heavy = plots.layer_profile(table.assign(mean=mean * (1, 1, 1, 1, 1, 1, 1, 100), ci_high=400.0))
    assert heavy.get_yscale() == "symlog" and "symmetric log" in heavy.get_ylabel()


# ---- scales and labels ----


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("ablation_zero_var_pct", "effect of zero ablation\n(% of the label variance)"),
        ("ablation_mean_mse_pct", "effect of mean ablation\n(% of the intact MSE)"),
        ("ablation_zero_start_freq_hz2", "effect of zero ablation on start_freq\n(Hz²)"),
        ("ablation_resample_start_time_s2", "effect of resample ablation on start_time\n(s²)"),
        ("ablation_zero_estimated_var_pct", "estimated effect of zero ablation\n(% of the label variance)"),
        ("ablation_zero_estimated_end_freq_hz2", "estimated effect of zero ablation on end_freq\n(Hz²)"),
        ("something else", "something else"),
    ],
)
def test_effect_label_names_kind_target_and_unit(column, label):
    assert artists.effect_label(column) == label


def test_symmetric_log_scale_needs_a_heavy_tail():
    assert artists.linear_within([1, 2, 3, -4, np.nan]) is None
    assert artists.linear_within([]) is None
    assert artists.linear_within([0.3, 0.4, -0.5, 60.0]) == 0.5
    assert artists.linear_within([1e-9] * 9 + [100.0]) == 0.1  # at most three decades of log on each side
    assert artists.symlog_ticks(-2, 30, 0.5) == [-1, -0.5, 0, 0.5, 1, 10]
    assert artists.symlog_ticks(0, 30, 0.1) == [0, 0.1, 1, 10]
    assert artists.symlog_minor_ticks(-0.75, 3.5, 0.5) == pytest.approx([-0.7, -0.6, 0.6, 0.7, 0.8, 0.9, 2, 3])


@pytest.mark.parametrize(("low", "ticks"), [(-30.0, [-10, 0, 10]), (0.1, [0, 1, 10])], ids=["two sides", "one side"])
def test_symmetric_log_axes_number_the_linear_part_and_leave_small_ticks_bare(low, ticks):
    figure = Figure((4, 4))
    wide, narrow = figure.subplots(1, 2)
    values = [low, 0.3, 0.2, 0.2, 0.2, 30.0]
    for ax, is_narrow in ((wide, False), (narrow, True)):
        ax.plot(values, values)
        artists.effect_scale(ax, "x", values, "score", 0.2, is_narrow=is_narrow)
    assert 0.2 in wide.get_xticks() and (-0.2 in wide.get_xticks()) is (low < 0)
    assert {2.0, 5.0, 20.0} <= set(wide.get_xticks(minor=True))
    figure.draw_without_rendering()
    assert not any(tick.label1.get_text() for tick in wide.xaxis.get_minor_ticks())
    assert narrow.get_xticks().tolist() == ticks


# ---- what must never happen ----


@pytest.mark.parametrize(
    "broken",
    [
        lambda t: plots.effect_heatmap(t["scorecard"].drop(columns=EFFECT)),
        lambda t: plots.effect_heatmap(t["scorecard"].iloc[:0]),
        lambda t: plots.effect_heatmap(pd.concat([t["scorecard"]] * 2)),
        lambda t: plots.head_ranking(pd.concat([t["scorecard"]] * 2)),
        lambda t: plots.iou_heatmaps(t["scorecard"], regions=("frame",)),
        lambda t: plots.iou_heatmaps(t["localization"], query="patch"),
        lambda t: method_plots.method_scatter(t["scorecard"], t["agreement"], truth="ablation_mean"),
        lambda t: method_plots.method_scatter(t["scorecard"], t["agreement"], methods=["no_such_method"]),
        lambda t: method_plots.method_scatter(t["scorecard"][["layer", "head", EFFECT]], t["agreement"]),
        lambda t: method_plots.agreement_bars(pd.concat([t["agreement"]] * 2)),
        lambda t: method_plots.agreement_bars(t["agreement"].drop(columns="noise_ceiling")),
        lambda t: plots.quadrant(t["scorecard"], looks="lift_chirp"),
        lambda t: method_plots.pixel_localization_bars(t["pixels"], region="frame"),
        lambda t: plots.layer_profile(np.zeros((3, 2))),
        lambda t: plots.layer_profile(np.full((2, 3, 4), np.nan)),
        lambda t: plots.layer_profile(t["scorecard"]),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused_in_one_line(tables, broken):
    with pytest.raises(ValueError) as caught:
        broken(tables)
    assert "\n" not in str(caught.value) and ":" in str(caught.value)


def test_the_error_names_what_there_is(tables):
    with pytest.raises(ValueError, match="region='frame', expected one of chirp, text"):
        method_plots.pixel_localization_bars(tables["pixels"], region="frame")


def everything(tables) -> list[Figure]:
    card, agreement = tables["scorecard"], tables["agreement"]
    effects = card[EFFECT].to_numpy().reshape(1, card["layer"].max() + 1, -1) * np.ones((5, 1, 1))
    axes = [
        plots.effect_heatmap(card),
        plots.quadrant(card),
        method_plots.pixel_localization_bars(tables["pixels"]),
        plots.layer_profile(np.nan_to_num(effects)),  # which refuses heads without a number
    ]
    figures = [plots.iou_heatmaps(card), plots.head_ranking(card), method_plots.agreement_bars(agreement)]
    return [*(ax.figure for ax in axes), *figures, method_plots.method_scatter(card, agreement)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(12, 12), (2, 2), (1, 1)], ids=str)
def test_every_figure_draws_without_a_warning(shape):
    for figure in everything(synthetic_tables(*shape)):
        figure.draw_without_rendering()


@pytest.mark.filterwarnings("error")
def test_every_figure_draws_where_nothing_has_a_value(tables):
    empty = {name: table.copy() for name, table in tables.items()}
    for table in empty.values():
        table[[c for c in table.columns if table[c].dtype == float]] = np.nan
    for figure in everything(empty):
        figure.draw_without_rendering()


def test_no_figure_changes_its_table(tables):
    before = {name: table.copy(deep=True) for name, table in tables.items()}
    everything(tables)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, before[name])


# ---- save_figure ----


def test_save_figure_writes_the_same_bytes_twice_without_a_date(tmp_path, tables):
    written = []
    for name in ("one", "two"):
        figure = method_plots.agreement_bars(tables["agreement"])
        png, svg = artists.save_figure(figure, tmp_path / name)
        assert (png, svg) == (tmp_path / f"{name}.png", tmp_path / f"{name}.svg")
        written.append((png.read_bytes(), svg.read_bytes()))
    assert written[0] == written[1]
    png, svg = written[0]
    assert png.startswith(b"\x89PNG") and b"tIME" not in png and b"tEXt" not in png
    assert b"<dc:date>" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert sorted(os.listdir(tmp_path)) == ["one.png", "one.svg", "two.png", "two.svg"]


def test_save_figure_keeps_dots_in_the_name(tmp_path):
    png, _ = artists.save_figure(Figure((1, 1)), tmp_path / "step.16")
    assert png.name == "step.16.png"


def saved_and_drawn(figure, folder):
    """The pixels of a figure as it was drawn and as it was saved, and the mode of the saved picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    png, _ = artists.save_figure(figure, folder / "figure")
    with Image.open(buffer) as before, Image.open(png) as after:
        drawn, saved = (np.asarray(image.convert("RGB")).astype(int) for image in (before, after))
        return drawn, saved, after.mode


def test_saved_figures_have_few_colours_and_flat_areas_are_exact(tmp_path):
    figure = Figure((3, 2), facecolor="#f0f0f0")
    ax = figure.add_subplot()
    ax.imshow(np.linspace(0, 1, 60).reshape(6, 10), cmap="viridis")
    ax.add_patch(matplotlib.patches.Rectangle((0, 0), 4, 3, color="0.37"))
    drawn, saved, mode = saved_and_drawn(figure, tmp_path)
    assert mode == "P" and drawn.shape == saved.shape
    assert (np.abs(drawn - saved).max(axis=-1) > artists.LEAST_SEEN).mean() <= 1 / 200
    for grey in (0xF0, round(0.37 * 255)):
        flat = (drawn == grey).all(axis=-1)
        assert flat.sum() > 1000 and (saved[flat] == grey).all()


def test_a_figure_of_many_hues_is_saved_as_drawn(tmp_path):
    figure = Figure((3, 2))
    figure.add_subplot().imshow(np.random.default_rng(0).random((200, 300, 3)))
    drawn, saved, mode = saved_and_drawn(figure, tmp_path)
    assert mode != "P" and (drawn == saved).all()
