"""Figures of two tails: what the artists hold, against the tables."""

import numpy as np
import pandas as pd
import pytest
from test_check_plots import cut_off

from analysis import check_plots, tail_plots
from analysis.point_labels import LEADER


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    beyond = np.sort(rng.standard_t(1.5, 30))[::-1]
    table = pd.DataFrame(
        {"layer_a": 9, "head_a": np.arange(30) % 6, "layer_b": 3, "head_b": np.arange(30) % 5, "beyond_var_pct": beyond}
    )
    table = table.assign(beyond_ci_low=beyond - 0.3, beyond_ci_high=beyond + 0.3)
    return table.assign(is_backup=table["beyond_ci_low"] > 0, is_shared=table["beyond_ci_high"] < 0, n=32)


@pytest.fixture
def curves():
    rng = np.random.default_rng(1)
    rows = []
    for name in ("gate_ig", "chefer", "random", "ablation_zero", *(f"random_{place}" for place in range(20))):
        gap = rng.normal() * 30
        for order in ("most_first", "least_first"):
            rise = np.cumsum(rng.exponential(size=4)) * 10
            rows += [(name, order, at, value, value - 1, value + 1, 5.0, gap, gap - 4, gap + 4, 32)
                     for at, value in zip((0, 1, 2, 4), rise, strict=True)]  # fmt: skip
    names = "method order removed loss_rise_var_pct ci_low ci_high area area_gap area_gap_ci_low area_gap_ci_high n"
    return pd.DataFrame(rows, columns=names.split())


def test_pairs_show_both_tails_and_their_numbers(pairs):
    figure = tail_plots.pairs_beyond_adding_up(pairs.sample(frac=1, random_state=0))
    [ax] = figure.axes
    counts = [pairs["is_backup"].sum(), pairs["is_shared"].sum()]
    counts.append(len(pairs) - sum(counts))
    assert min(counts) > 0
    assert [text.get_text().rsplit("(")[-1] for text in figure.legends[0].get_texts()] == [f"{n})" for n in counts]
    assert figure.legends[0].get_texts()[2].get_text().startswith("not both: interval beyond 0 and q < 0.05")
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) >= 2
    for line, name in zip(dots[:2], ("is_backup", "is_shared"), strict=True):
        assert list(line.get_ydata()) == list(pairs.loc[pairs[name], "beyond_var_pct"])
        assert list(line.get_xdata()) == list(pairs.index[pairs[name]])
    named = [text for text in ax.texts if text.get_text()]
    assert [text.get_text() for text in named][::5] == ["L9H0 + L3H0", "L9H5 + L3H4"] and len(named) == 6
    boxes = [text.get_window_extent() for text in named]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(6) for j in range(i))
    assert any(text.get_label() == LEADER for text in ax.texts)
    figure.draw_without_rendering()
    assert not cut_off(figure)


def test_gaps_stand_beside_the_range_of_random_orders(curves):
    figure = tail_plots.area_gaps(curves)
    [ax] = figure.axes
    gaps = curves.drop_duplicates("method").set_index("method")["area_gap"]
    null = gaps[gaps.index.str.fullmatch(r"random_\d+")]
    order = gaps.drop(null.index).sort_values().index
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["random (one more order)" if name == "random" else name for name in order]
    zero = next(line for line in ax.lines if list(line.get_xdata()) == [0, 0])
    assert zero.get_zorder() > ax.patches[0].get_zorder()
    assert ax.get_legend() is None and len(figure.legends) == 1  # below the axes, on no number
    [ticks] = [line for line in ax.lines if line.get_marker() == "|"]
    assert sorted(ticks.get_xdata()) == pytest.approx(sorted([*null, *-null])) and len(ticks.get_xdata()) == 40
    [band] = ax.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-null.abs().max(), 2 * null.abs().max()))
    figure.draw_without_rendering()
    assert not cut_off(figure)
    without = tail_plots.area_gaps(curves[~curves["method"].isin(null.index)])
    assert not without.axes[0].patches and not without.legends
    assert "random" in [label.get_text() for label in without.axes[0].get_yticklabels()]


def test_curves_show_the_band_of_random_orders(curves):
    figure = check_plots.removal_curves(curves)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"median of 20 random orders", "90 % of 20 random orders", "random (one more order)"} <= set(named)
    assert "random" not in named
    for panel, order in zip(figure.axes, ("most_first", "least_first"), strict=True):
        [middle] = [line for line in panel.lines if line.get_label() == "median of 20 random orders"]
        rows = curves[curves["method"].str.fullmatch(r"random_\d+")]
        for at, value in zip(middle.get_xdata(), middle.get_ydata(), strict=True):
            assert value == pytest.approx(np.median(rows.loc[rows["removed"] == at, "loss_rise_var_pct"]))
        assert order in set(rows["order"])
        one_more = next(line for line in panel.lines if line.get_label() == "random (one more order)")
        drawn = curves[(curves["method"] == "random") & (curves["order"] == order)]
        assert list(one_more.get_ydata()) == list(drawn["loss_rise_var_pct"]) and one_more.get_linestyle() == ":"
        assert len(panel.lines) == 1 + 1 + 1 + 1 + 2  # the zero, the median, one more, the truth, two methods


def test_tables_that_do_not_fit_are_refused_in_one_line(pairs, curves):
    for draw, table in (
        (tail_plots.pairs_beyond_adding_up, pairs.drop(columns="is_shared")),
        (tail_plots.area_gaps, curves.drop(columns="area_gap")),
    ):
        with pytest.raises(ValueError, match=r"^(redundancy|curves): ") as caught:
            draw(table)
        assert "\n" not in str(caught.value)
