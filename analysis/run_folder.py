"""The folder of a run: held, cleared of what no longer holds, filled with tables, figures, report and manifest.

Takes per-picture results and settings; leaves files, each whole or not at all, and gives the lines of the short answer.
Computes no scores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import timings
from analysis.adopted_scores import read_adopted
from analysis.answer import (
    REFERENCE_FOLDER,
    compare_with_reference,
    describe_league,
    describe_run,
    read_reference,
)
from analysis.claim_checks import CLAIMS_SHA256, table_sha256
from analysis.explain import Explained, shared_indices
from analysis.figures import FIGURES, GALLERY_PICTURES, layer_table, write_figures
from analysis.intervals import indicative
from analysis.manifest import manifest
from analysis.models import OpenedModel
from analysis.own_files import (
    Outputs,
    by_command,
    figure_files,
    finish_writing,
    own_files,
    require_own,
    start_writing,
)
from analysis.pictures import Pictures, PictureSource
from analysis.plan import plan_sha256
from analysis.report import write_report
from analysis.run_tables import TABLES, run_tables
from analysis.score_entries import says_scores
from analysis.scorecard import Truth, effect_column
from analysis.settings import CompareSettings
from analysis.tables import write_table
from analysis.truths import LEAST_SWEPT
from attribution.folder_lock import only_run
from attribution.own_folder import require_folder_name

COMMAND = "analysis.compare"
CONTROL_WARNING = "CONTROL RUN: a small random network that was never trained. Its heads mean nothing."
MOST_PICTURES_SHOWN = 64


def with_output(settings: CompareSettings, num_pictures: int) -> CompareSettings:
    """Settings with the output folder filled in: ``results/<model>-<data>-<pictures>``, with ``-estimate<swept>``."""
    if settings.output_dir is not None:
        return settings
    model, data = Path(settings.model).name, Path(settings.data).name
    estimate = "" if settings.estimate is None else f"-estimate{settings.estimate}"
    return replace(settings, output_dir=f"results/{model}-{data}-{num_pictures}{estimate}")


def outputs_of(folder: Path) -> Outputs:
    """Every file that a run may write in its folder, scores apart."""
    names = ("report.html", *(f"{name}.csv" for name in TABLES), *figure_files(FIGURES))
    return Outputs(folder, COMMAND, names, earlier=lambda: by_command(folder, COMMAND))


def prepare_folder(folder: Path) -> None:
    """Make the output folder and check that it can be written to (OSError) and named in a page (ValueError)."""
    require_folder_name(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: no permission to write")


@contextmanager
def own_folder(folder: Path, score_names: Iterable[str]) -> Iterator[None]:
    """The folder made and held for a run that will store scores of these names. ValueError or OSError with one line
    where it holds something else under a name that the run would write, or another run is under way in it."""
    outputs = outputs_of(folder)
    require_own(outputs)
    _require_own_scores(outputs, score_names)
    prepare_folder(folder)
    with only_run(folder):
        yield


def _require_own_scores(outputs: Outputs, names: Iterable[str]) -> None:
    """Scores say themselves what they are; beside one of them, or in the folder of a finished run, a file that is not
    readable as such is a damaged one. What says that it is something else is somebody else's wherever it lies."""
    folder = outputs.folder / "scores"
    read_adopted(folder)
    names = sorted({*names})
    paths = [timings.timings_path(folder), *(folder / f"{name}.safetensors" for name in names)]
    for path in (*paths, *(folder / f"{name}.parts" for name in names)):
        wanted = path.is_dir() if path.suffix == ".parts" else path.is_file()
        if os.path.lexists(path) and not wanted:
            raise ValueError(f"{path}: not of {COMMAND}; choose another folder, or move it away")
    foreign = [path for path in paths[1:] if says_scores(path) is False]
    foreign += paths[:1] if timings.is_foreign(folder) else []
    is_own = own_files(outputs) or outputs.marker.exists()
    is_own = is_own or any(map(says_scores, (*folder.glob("*.safetensors"), *folder.glob("*.parts/*"))))
    for path in foreign if is_own else paths:
        if os.path.lexists(path):
            raise ValueError(f"{path}: not written by {COMMAND}; choose another folder, or move it away")


def write_results(
    folder: Path,
    settings: CompareSettings,
    opened: OpenedModel,
    source: PictureSource,
    explained: Explained,
    num_processes: int = 1,
) -> list[str]:
    """Tables, figures, report and manifest from per-picture scores; returns the lines of the short answer."""
    survey, count = explained.survey, len(explained.survey)
    is_reference = folder.resolve() == REFERENCE_FOLDER
    reference = None if is_reference or opened.is_control else read_reference()
    indices = shared_indices(settings)
    tables = run_tables(settings, opened, source, explained, indices)
    empty = sorted(name for name, table in tables.items() if not len(table))
    tables = {name: table for name, table in tables.items() if name not in empty}
    scorecard, agreement = tables["head_scorecard"], tables.get("agreement")
    answer = describe_run(scorecard, agreement, tables.get("differences"))
    answer += describe_league(tables.get("league"), tables.get("truths"), tables.get("league_by_question"))
    caution = indicative(count)
    warnings = [CONTROL_WARNING] if opened.is_control else []
    if not opened.is_control and not is_reference:
        answer += compare_with_reference(scorecard, agreement, reference, opened.sha256, source.identity)
    if caution:
        warnings.append(
            f"{caution[0].upper()}{caution[1:]}: intervals are too narrow at this number and ranks unstable."
        )
    warnings += estimate_warnings(explained.truths, count)
    if survey.patch_labels is None:
        warnings.append("These pictures come without masks: where heads look is shown, but not scored.")
    if empty:
        warnings.append(f"Nothing to be said by {', '.join(empty)}: these pictures or methods do not allow it.")
    few = {name: len(found) for name, found in explained.scores.items() if len(found) < count}
    if few and explained.truth.is_estimated:
        warnings.append(
            f"Not compared with estimated effects, which mean something over all pictures alone: {', '.join(few)} (of "
            f"{min(few.values())} pictures; --path-pictures {count} takes all)."
        )
    elif few:
        warnings.append(
            f"Of the first {min(few.values())} pictures alone, to be read as indicative: {', '.join(few)}; column "
            "n of other tables says how many theirs are."
        )
    note = f"{count} pictures" + (", indicative only." if caution else ".")
    if explained.truth.is_estimated:
        note += f" Effects are estimated from a sweep of {explained.truth.num_swept} of them."
    shown = _shown(source)
    layers = layer_table(explained.truth, indices(count))
    record = manifest(
        settings=asdict(settings),
        model=opened.identity | {"config": asdict(opened.model.config)},
        data=source.identity | {"sha256": survey.sha256},
        device=settings.device,
        done=count,
        total=count,
    )
    record["processes"] = num_processes
    if "claims" in tables:
        record["plan_sha256"] = plan_sha256()
    # Pictures are read, tables made: an earlier result goes only now, and figures alone are drawn after it.
    outputs = outputs_of(folder)
    start_writing(outputs)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    if "claims" in tables:
        record[CLAIMS_SHA256] = table_sha256(folder / "claims.csv")
    figures = write_figures(
        folder / "figures",
        tables=tables,
        layers=layers,
        images=shown.images,
        maps=explained.maps["cls"][: len(shown.images)],
        pixel_maps={name: found[: len(shown.images)] for name, found in explained.pixel_maps.items()},
        masks=shown.masks,
        twins_shown=explained.twins_shown,
        note=("Control, random weights. " if opened.is_control else "") + note,
    )
    effect = effect_column(scorecard)
    write_report(
        folder / "report.html",
        title=("CONTROL: " if opened.is_control else "") + "Which heads matter, and which method tells",
        answer=answer,
        warnings=warnings,
        figures=figures,
        tables=[
            ("Heads by effect", "The 20 heads whose removal hurts most; all heads in head_scorecard.csv.",
             scorecard.nlargest(20, effect)),
            *league_on_the_page(tables),
            ("Methods", "What each method is; what it took stands in methods.csv.",
             tables["methods"].drop(columns=["seconds", "peak_mb", "forwards_measured"])),
        ],
        manifest=record,
    )  # fmt: skip
    finish_writing(outputs, record)
    return [*warnings, *answer, f"All of it: {folder / 'report.html'}"]


def league_on_the_page(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str, pd.DataFrame]]:
    """The truths among themselves, then the league, as the report shows them; nothing without methods."""
    found = []
    if "truths" in tables:
        rows = tables["truths"]
        rows = rows[(rows["estimator"] == "mean") & rows["statistic"].isin(["spearman", "spearman_split_half"])]
        caption = "Spearman over heads; a truth with itself: between halves of the pictures. All in truths.csv."
        found.append(("The truths among themselves", caption, rows))
    if "league" in tables:
        ranks = [name for name in tables["league"].columns if str(name).startswith("rank_")]
        shown = [
            *("method", "family", "n", "forwards", "value_cross", "cross_ci_low", "cross_ci_high", "noise_ceiling"),
            *("cross_difference_from_best", "cross_p_holm", "ablation_at_cost_matched", "beats_ablation_at_cost"),
            *("spearman", "within_layers", "top_10", "calibration_slope", "calibration_r2", *ranks, "same_as"),
        ]
        caption = (
            "Agreement with zero ablation of other pictures, best first (spearman, within_layers, top_10: of the "
            "same); all columns in league.csv, all statistics in agreement.csv."
        )
        found.append(("League of the methods", caption, tables["league"][shown].dropna(axis=1, how="all")))
    return found


def estimate_warnings(truths: Sequence[Truth], num_pictures: int) -> list[str]:
    """What to know of estimated effects; nothing where they are swept."""
    explained, swept = [], []
    for truth in truths:
        if truth.is_swept is None or truth.r2 is None:
            return []
        kind, estimated = truth.kind.removesuffix("_estimated"), ~truth.is_swept
        explained.append(f"{kind} {np.median(truth.r2[estimated]):.2f}" if estimated.any() else f"{kind} none left")
        swept.append(f"{kind} {int(truth.is_swept.sum())}")
    number, num_heads = truths[0].num_swept, truths[0].delta_loss[0].size
    found = [
        f"Effects are estimates: {number} of {num_pictures} pictures were swept, the others predicted (median R² over "
        f"heads: {', '.join(explained)}); swept on all pictures: of {num_heads} heads {', '.join(swept)}. Estimates "
        "are of means alone: trimmed means are left out."
    ]
    if number is not None and number < LEAST_SWEPT:
        found.append(
            f"Fewer than {LEAST_SWEPT} pictures were swept: intervals of estimates are then somewhat too narrow."
        )
    return found


def _shown(source: PictureSource) -> Pictures:
    """The first pictures, so many that figures find a few with each region, if it is not a rare one."""
    for count in (16, 32, MOST_PICTURES_SHOWN):
        pictures = source.draw(range(min(count, source.count)))
        masks = {} if pictures.masks is None else pictures.masks
        if all(mask.any(axis=(1, 2)).sum() >= GALLERY_PICTURES for mask in masks.values()) or count >= source.count:
            break
    return pictures
