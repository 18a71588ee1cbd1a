"""Files as the study's released code writes them, so that its readers can hold two runs side by side.

Takes losses and predictions of every scenario; writes tables and two figures, each whole or not at all. Names, columns
and conventions are those of `vision-mech-interp-attn-head` 0.1.8: layers and heads from 0 in files and from 1 in
figures, standardised predictions, increases in % of the baseline loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.artists import draw_cells, figure_of, new_axes, save_figure
from analysis.own_files import figure_files
from analysis.tables import write_table

PREDICTION_COLUMNS = ("Chirp_Start_Time_Pred", "Chirp_Start_Freq_Pred", "Chirp_End_Freq_Pred")
HEAT_MAP, GRID = "loss_increase_heatmap", "layer_head_distribution_grid"
GRID_COLUMNS, BINS = 4, 30
Head = tuple[int, int]


def write_released_format(
    folder: Path,
    scenarios: Sequence[Head],
    scenario_losses: Sequence[float],
    predictions: NDArray[np.floating],
    baseline_loss: float,
    baseline: NDArray[np.floating],
) -> list[Path]:
    """Write ``ablation_results.csv``, ``scenario_layer_*_head_*.csv``, ``baseline.csv``,
    ``baseline_ablation_results.csv``, the heat map of increases and the grid of distributions; gives all paths.

    ``predictions`` [scenario image target] and ``baseline`` [image target], standardised. ValueError unless there are
    three targets, which is what the columns are for.
    """
    if predictions.shape[-1] != len(PREDICTION_COLUMNS):
        raise ValueError(f"released format: expected {len(PREDICTION_COLUMNS)} targets, got {predictions.shape[-1]}")
    folder.mkdir(parents=True, exist_ok=True)
    results = pd.DataFrame(
        [(layer, head, loss) for (layer, head), loss in zip(scenarios, scenario_losses, strict=True)],
        columns=["layer", "head", "loss"],
    ).sort_values(["layer", "head"], ignore_index=True)
    everything = pd.DataFrame({"layer": ["all"], "head": ["all"], "loss": [baseline_loss]})
    written = [
        write_table(results, folder / "ablation_results.csv"),
        write_table(everything, folder / "baseline_ablation_results.csv"),
        write_table(_predicted(baseline), folder / "baseline.csv"),
    ]
    for (layer, head), found in zip(scenarios, predictions, strict=True):
        written.append(write_table(_predicted(found), folder / f"scenario_layer_{layer}_head_{head}.csv"))
    heat_map, grid = increase_heat_map(results, baseline_loss), distribution_grid(scenarios, predictions, baseline)
    written += save_figure(figure_of(heat_map), folder / HEAT_MAP)[:1]
    written += save_figure(grid, folder / GRID)[:1]
    return written


def released_files(scenarios: Sequence[Head]) -> tuple[str, ...]:
    """The names of the files that :func:`write_released_format` writes."""
    tables = ("ablation_results", "baseline_ablation_results", "baseline")
    each = (f"scenario_layer_{layer}_head_{head}" for layer, head in scenarios)
    return (*(f"{name}.csv" for name in (*tables, *each)), *figure_files((HEAT_MAP, GRID), folder=""))


def _predicted(predictions: NDArray[np.floating]) -> pd.DataFrame:
    return pd.DataFrame(predictions, columns=list(PREDICTION_COLUMNS))


def increase_heat_map(results: pd.DataFrame, baseline_loss: float, *, ax: Axes | None = None) -> Axes:
    """Layer x head map of the increase of the loss in % of the baseline, colours and labels as published."""
    grid = results.pivot(index="layer", columns="head", values="loss").to_numpy()
    grid = 100 * (grid - baseline_loss) / baseline_loss
    ax = new_axes(ax, 2.6 + 0.62 * grid.shape[1], max(3.4, 1.4 + 0.38 * grid.shape[0]))
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    norm = Normalize(low, high if high > low else low + 1)
    image = draw_cells(ax, grid, norm, "RdYlBu_r", lambda value: f"{value:.2f}", 7.5)
    ax.set_xticks(range(grid.shape[1]), [str(number) for number in range(1, grid.shape[1] + 1)])
    ax.set_yticks(range(grid.shape[0]), [str(number) for number in range(1, grid.shape[0] + 1)])
    ax.set(xlabel="Head", ylabel="Layer", title="Increase of the loss per head")
    figure_of(ax).colorbar(image, ax=ax, pad=0.02).set_label("Increase Percent (%)")
    return ax


def distribution_grid(
    scenarios: Sequence[Head], predictions: NDArray[np.floating], baseline: NDArray[np.floating]
) -> Figure:
    """A panel a layer: histograms of the predicted start times without each head, over those of the baseline."""
    layers = sorted({layer for layer, _ in scenarios})
    num_rows = -(-len(layers) // GRID_COLUMNS)
    figure = Figure(figsize=(3.6 * GRID_COLUMNS, 2.9 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, GRID_COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    edges = np.histogram_bin_edges(np.concatenate([predictions[..., 0].ravel(), baseline[:, 0]]), bins=BINS)
    heads = sorted({head for _, head in scenarios})
    for ax, layer in zip(panels[: len(layers)], layers, strict=True):
        ax.hist(baseline[:, 0], bins=edges, color="0.8", edgecolor="black", linewidth=0.5, label="baseline")
        for (at, head), found in zip(scenarios, predictions, strict=True):
            if at == layer:
                colour = f"C{heads.index(head) % 10}"
                ax.hist(found[:, 0], bins=edges, histtype="step", color=colour, label=f"head {head + 1}")
        ax.set_title(f"Layer {layer + 1}")
    for ax in panels[len(layers) :]:
        ax.remove()
    figure.supxlabel("predicted chirp start time (standardised)")
    figure.supylabel("pictures")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure
