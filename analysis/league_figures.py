"""The figures of the league table, the truths and the checks: which ones, from which tables, with which captions.

Takes the tables of a run by name; gives (name, title, caption, figure) of those that can be drawn. Draws nothing itself
(:mod:`analysis.league_plots`, :mod:`analysis.check_plots`, :mod:`analysis.knockout_plots`,
:mod:`analysis.tail_plots`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis import check_plots, circuit_plots, edge_plots, knockout_plots, league_plots, question_plots, tail_plots
from analysis.artists import figure_of
from analysis.captions import pictures_told

Drawn = tuple[str, str, str, Figure]


def league_figures(tables: Mapping[str, pd.DataFrame]) -> Iterator[Drawn]:
    """Truths against truths, methods against truths, cost against agreement."""
    truths, league = tables.get("truths"), tables.get("league")
    if truths is not None and truths["truth_a"].nunique() > 1:
        yield (
            "truth_matrix",
            "Do the truths agree?",
            "Rank correlation over heads of the effects of removing a head in several ways, with 95 % intervals; on "
            "the diagonal that of one truth between halves of the pictures. Beyond it no method can be judged.",
            figure_of(league_plots.truth_matrix(truths)),
        )
    if league is not None:
        ranked = [str(name).removeprefix("rank_") for name in league.columns if str(name).startswith("rank_")]
        yield (
            "league",
            "Every method under every truth",
            "Spearman correlation of each method's scores with each truth of other pictures, and its rank under it on "
            "the pictures that all methods have; best under zero ablation first. Controls are grey; a method whose "
            "scores are another's bears its name.",
            league_plots.league_heatmap(tables["agreement"], league, truths=ranked),
        )
        questions = tables.get("league_by_question")
        if questions is not None and questions["is_own"].any() and questions["truth"].nunique() > 1:
            yield (
                "league_by_question",
                "Each method by its own question",
                "Spearman correlation of each method's scores with each kind of ablation, scores and truth of "
                "different pictures, over all heads and within layers. Framed: the ablation whose effect the method "
                "approximates. Bold: the best of its column. Controls are grey.",
                question_plots.question_heatmap(questions),
            )
        if (league["forwards"] > 0).any():
            yield (
                "cost_front",
                "What agreement costs",
                "Price of a method in forward passes per picture against its agreement with zero ablation of other "
                "pictures (pale: of the same). The line is the front of those that no cheaper method matches, controls "
                "left out; dashed: "
                "zero ablation of so few of the method's pictures that it costs the same, judged on the same other "
                "pictures; ringed: the methods that agree better than that. Prices are counted passes, a backward pass "
                "as 1.3.",
                figure_of(league_plots.cost_front(league)),
            )


def check_figures(tables: Mapping[str, pd.DataFrame]) -> Iterator[Drawn]:
    """One or two figures for each check that was asked for; captions end with how many pictures they rest on."""

    def has(name: str) -> bool:
        return name in tables and len(tables[name]) > 0

    def of(name: str) -> str:
        return f" {pictures_told(tables[name])}"

    if has("curves"):
        yield (
            "removal_curves",
            "Removing heads in each method's order",
            "Mean rise of the loss when heads leave one after the other, most important first and least important "
            "first. A good order rises early on the left and late on the right; colour bands: 95 % intervals of the "
            "two best; grey band: nine tenths of the random orders, dashed their median." + of("curves"),
            check_plots.removal_curves(tables["curves"]),
        )
        yield (
            "area_gaps",
            "Which orders of removal are better than chance",
            "Area under the curve with the most important heads first less that with the least important first, with "
            "95 % intervals over pictures; grey: the range of random orders (ticks), each from either end. The method "
            "random is one more such order." + of("curves"),
            tail_plots.area_gaps(tables["curves"]),
        )
    if has("circuits"):
        yield (
            "circuits",
            "Keeping only the heads that an order puts first",
            "How much of the model's performance is left (1: as good as with all heads, 0: as bad as with none) when "
            "only so many heads are kept, all others set to zero. In colour the five orders of the largest performance "
            "ratio (mean over the logarithm of the share kept); grey band: nine tenths of the random orders."
            + of("circuits"),
            circuit_plots.faithfulness_curves(tables["circuits"]),
        )
        yield (
            "circuit_areas",
            "Which orders find the heads that suffice",
            "Mean faithfulness over the logarithm of the share of heads kept (performance ratio), and the mean of its "
            "distance from 1, with 95 % intervals over pictures; grey: the range of random orders." + of("circuits"),
            circuit_plots.circuit_areas(tables["circuits"]),
        )
    if has("redundancy"):
        yield (
            "redundancy",
            "Heads that do more, or less, harm together",
            "Pairs of the heads that matter most: effect of removing both less what it would be if their outputs added "
            "up, with 95 % intervals. In colour: the interval excludes 0 and q < 0.05 (Wilcoxon, Benjamini-Hochberg), "
            "either way." + of("redundancy"),
            tail_plots.pairs_beyond_adding_up(tables["redundancy"]),
        )
    if has("joint_removal"):
        yield (
            "joint_removal",
            "Whole layers removed at once",
            "Mean rise of the loss without all heads of a layer, and of layers together, beside the sum of what these "
            "heads do one at a time, with 95 % intervals. Where the two differ, single effects do not tell what layers "
            "do." + of("joint_removal"),
            check_plots.joint_removal(tables["joint_removal"]),
        )
    if has("edges"):
        yield (
            "edges",
            "From which head to which",
            "What the heads that matter most do by way of one later head's queries, keys or values alone, everything "
            "between them held as it was: the largest edges, which together carry four fifths of the sizes of all. "
            "Width: the effect; dashed: the loss falls without it." + of("edges"),
            edge_plots.edge_map({"": tables["edges"]}),
        )
    if has("knockout"):
        yield (
            "knockout",
            "Where a head looks, and whether looking there matters",
            "Effect of hiding one region from the CLS query of one head (dots: 95 % interval excludes 0), and the "
            "share of the query's attention that was there." + of("knockout"),
            knockout_plots.knockout_table(tables["knockout"]),
        )
        yield (
            "mass_against_knockout",
            "Looking at a region against needing to",
            "The same numbers head by head: share of the CLS query's attention against the effect of hiding the region."
            + of("knockout"),
            knockout_plots.mass_against_knockout(tables["knockout"]),
        )
    if has("randomised"):
        yield (
            "randomised",
            "Does a method notice that the model was never trained?",
            "Rank correlation of each method's scores on redrawn, partly redrawn (from the last block down) and not "
            "fine-tuned models with its own on the intact model, and with the truth of the intact model. A method that "
            "reads what was learnt is near 0." + of("randomised"),
            check_plots.randomised_bars(tables["randomised"]),
        )
    if has("sensitivity"):
        yield (
            "sensitivity",
            "What a ranking owes to its settings",
            "Methods with half and twice the steps, and from other baselines." + of("sensitivity"),
            check_plots.sensitivity_heatmap(tables["sensitivity"]),
        )
    if has("planted"):
        planted = tables["planted"]
        ideals = {str(name): float(value) for name, value in zip(planted["statistic"], planted["ideal"], strict=True)}
        yield (
            "planted",
            "Known answers",
            "Each method on models whose answer was planted: a silenced head (its score should be 0), a head split "
            "into two equal halves (their scores should be equal), heads in another order (scores should follow), and "
            "a model wired by hand (the working head should come first)." + of("planted"),
            check_plots.planted_heatmap(planted, ideals=ideals),
        )
