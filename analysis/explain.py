"""Everything that needs the model: the truth, every method's scores, attention maps and pixel maps, per picture.

Takes a loaded model, a source of pictures and settings; gives :class:`Explained`, from which all tables and figures
follow without a model. What is computed stands in :mod:`analysis.passes`, how it is done piece by piece, stored, reused
and shared between processes in :mod:`analysis.piecework`. Knows no statistics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.adopted_scores import RECORD, adopt_scores, forget_adopted, told, write_record
from analysis.checks import twins_shown
from analysis.checks.evidence import Evidence, Head
from analysis.checks.trials import check_passes, check_tables, chosen_checks, looking_orders, orders_of
from analysis.intervals import bootstrap_indices
from analysis.models import OpenedModel
from analysis.out_of_memory import BatchSize
from analysis.passes import (
    ATTENTION,
    PIXEL,
    UNKNOWN,
    Pass,
    attention_pass,
    chosen_methods,
    gradient_passes,
    method_passes,
)
from analysis.pictures import PictureSource
from analysis.piecework import (
    Known,
    Work,
    compute_pieces,
    join_scores,
    known_pieces,
    survey_pictures,
    with_files,
)
from analysis.score_files import Arrays, Piece, read_scores, remove_leftovers, remove_scores
from analysis.scorecard import Truth, oriented
from analysis.settings import CompareSettings
from analysis.sharding import Processes
from analysis.stored_array import StoredArray
from analysis.survey import Survey
from analysis.timings import read_timings, summary, timings_path
from analysis.truth_passes import KINDS
from analysis.truths import poor_name, read_shapley, read_truths, truth_passes
from attribution.checkpoint import backbone_settings
from attribution.heads import QUERIES
from attribution.methods import PIXEL_METHODS
from attribution.vit import loss_per_image, require_eval

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explained:
    """Per-picture results. ``truths``, zero ablation first; ``shapley`` [image layer head], values over gates where
    asked for; ``scores`` name -> [image layer head], of the first pictures alone where a method is expensive;
    ``pixel_maps`` name -> [image row col] on the patch grid; ``maps`` query -> [image layer head row col], left on
    disk; ``head_columns`` name -> [image layer head]; ``predictions`` [image target] in units; ``timings`` name ->
    seconds and process peak memory; ``completeness`` name -> median error relative to the difference it should sum to;
    ``survey``, what is known of the pictures; ``checks``, the table of each check; ``twins_shown``, a few pictures with
    their twins (:mod:`analysis.checks.twins_shown`), where these were asked for."""

    truths: tuple[Truth, ...]
    shapley: Floats | None
    scores: dict[str, Floats]
    pixel_maps: dict[str, Floats]
    maps: dict[str, StoredArray]
    head_columns: dict[str, Floats]
    predictions: Floats
    timings: dict[str, dict[str, float]]
    completeness: dict[str, float]
    survey: Survey
    checks: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    twins_shown: Arrays | None = None

    @property
    def truth(self) -> Truth:
        """The primary truth, zero ablation."""
        return self.truths[0]


def require_better_than_mean(predictions: Tensor, labels: Tensor, name: str) -> None:
    """Refuse to explain a model that is worse than predicting the mean label of these pictures (ValueError)."""
    model_error = loss_per_image(predictions, labels).mean().item()
    mean_error = loss_per_image(labels.mean(dim=0, keepdim=True).expand_as(labels), labels).mean().item()
    if model_error >= mean_error:
        raise ValueError(
            f"--model {name}: its error on these pictures ({model_error:.3g}) is not below that of predicting their "
            f"mean ({mean_error:.3g}); there is nothing to explain"
        )


def explain(
    opened: OpenedModel,
    source: PictureSource,
    settings: CompareSettings,
    folder: Path,
    on_progress: Callable[[str, float], None],
    *,
    processes: Processes | None = None,
    overwrite: bool = False,
    adopt: int = 0,
) -> Explained | None:
    """Compute what is missing, or everything with ``overwrite``; ``on_progress(pass, cost done)`` counts in forward
    passes of one picture. Scores that other code stored are taken over where ``adopt`` pictures of them come out the
    same.

    All processes must come here; the main one is given the results, the others None.
    """
    require_eval(opened.model)
    processes = Processes() if processes is None else processes
    first, *others = all_passes(opened, source, settings)
    identity = {
        "model": opened.sha256,
        "config": asdict(opened.model.config),
        "backbone": backbone_settings(opened.model),
        "device": settings.device,
        "batch_size": settings.batch_size,
        "software": _software(),
    }
    number = processes.gathered(lambda: uuid4().hex)[0]
    work = Work(
        opened,
        source,
        folder,
        identity,
        {},
        BatchSize(settings.batch_size),
        processes,
        on_progress,
        settings.seed,
        number,
    )
    work = with_files(work, [first, *others])
    processes.require_same("model, settings or versions", {name: file.identity for name, file in work.files.items()})
    _prepare(work, overwrite)
    _tell_unknown(processes, [first, *others])
    if adopt:
        survey = survey_pictures(work, replace(first, depends_on={}, forwards=0.0), {})
        adopt_from_other_code(work, survey, [first, *others], adopt)
        known = _known(work)
        compute_passes(work, survey, [first], known)
    else:
        known = _known(work)
        survey = survey_pictures(work, first, known)
        join_scores(work, first.depends_on, survey.pieces())
    if not opened.is_control:
        processes.gathered(lambda: _refuse_a_bad_model(work, survey) if processes.is_main else None)
    compute_passes(work, survey, others, known)
    truths = read_truths(work, survey, settings)
    explained = None if truths is None else _explained(work, settings, survey, truths, [first, *others])
    return _with_checks(work, survey, settings, explained, adopt)


def adopt_from_other_code(work: Work, survey: Survey, passes: Sequence[Pass], sample: int) -> None:
    """Take over score files of other code that come out the same on a sample of pictures; says what came of it."""

    def adopted() -> None:
        found = adopt_scores(work, survey, passes, sample)
        write_record(work, found)
        for line in told(found):
            print(line, file=sys.stderr)

    work.processes.gathered(adopted if work.processes.is_main else lambda: None)


def _tell_unknown(processes: Processes, passes: Sequence[Pass]) -> None:
    lines = [line for one in passes for depends_on in one.depends_on.values() for line in depends_on.get(UNKNOWN, [])]
    for line in dict.fromkeys(lines if processes.is_main else []):
        print(line, file=sys.stderr)


def _with_checks(
    work: Work, survey: Survey, settings: CompareSettings, explained: Explained | None, adopt: int = 0
) -> Explained | None:
    """Compute what the checks need, in the orders of heads that the main process found; it is given their tables."""
    if not chosen_checks(settings):
        return explained
    orders = work.processes.gathered(lambda: {} if explained is None else _orders(explained, settings))[0]
    methods = chosen_methods(settings.methods)
    passes = [
        one for found in check_passes(work.opened, work.source, settings, methods, orders).values() for one in found
    ]
    more = with_files(work, passes)
    files = more.files
    _clear_leftovers(more)
    if adopt:
        adopt_from_other_code(more, survey, passes, adopt)
    compute_passes(more, survey, passes, _known(more))
    if explained is None:
        return None
    evidence = Evidence(
        work.opened,
        work.source,
        settings,
        methods,
        {name: oriented(found, methods[name]) for name, found in explained.scores.items()},
        explained.truth,
        orders,
        shared_indices(settings),
        lambda name: read_scores(files[name].path)[0],
        explained.maps,
        survey.patch_labels,
    )
    shown = evidence.read(twins_shown.NAME) if twins_shown.NAME in files else None
    return replace(explained, checks=check_tables(evidence), twins_shown=shown)


def _orders(explained: Explained, settings: CompareSettings) -> dict[str, tuple[Head, ...]]:
    methods = chosen_methods(settings.methods)
    scores = {name: oriented(found, methods[name]) for name, found in explained.scores.items()}
    orders = orders_of(scores | {truth.name: truth.delta_loss for truth in explained.truths}, settings.seed)
    return orders | looking_orders(explained.maps["cls"], explained.survey.patch_labels, settings.seed)


def shared_indices(settings: CompareSettings) -> Callable[[int], NDArray[np.int64]]:
    """The bootstrap matrix [replicate image] of so many pictures, the same whenever it is asked for."""
    return lru_cache(maxsize=None)(
        lambda count: bootstrap_indices(count, settings.bootstrap_replicates, seed=settings.seed)
    )


def _known(work: Work) -> Known:
    """The finished pieces; of what has none, nothing is told of adopted scores any more: it is computed anew."""
    known = known_pieces(work)
    anew = [name for name, found in known.items() if not found]
    work.processes.gathered(lambda: forget_adopted(work.folder, anew) if work.processes.is_main else None)
    return known


def compute_passes(work: Work, survey: Survey, passes: Sequence[Pass], known: Known) -> None:
    """Compute what is missing of passes, each for its own pictures; a piece that several take is drawn once."""
    jobs: dict[Piece, list[Pass]] = {piece: [] for piece in survey.pieces()}
    for one in passes:
        for piece in survey.pieces(one.rows):
            jobs.setdefault(piece, []).append(one)
    compute_pieces(work, jobs.items(), known)
    for one in passes:
        join_scores(work, one.depends_on, survey.pieces(one.rows))


def all_passes(opened: OpenedModel, source: PictureSource, settings: CompareSettings) -> list[Pass]:
    """Everything a run computes of truths and methods, in order: attention first, then the truths, then the methods."""
    return [
        attention_pass(opened, settings),
        *truth_passes(opened, source, settings),
        *gradient_passes(opened, settings),
        *method_passes(opened, settings, source.count),
    ]


def _prepare(work: Work, overwrite: bool) -> None:
    def clear() -> None:
        work.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            forget_adopted(work.folder)  # first: it refuses what is somebody else's
            remove_scores(work.folder)
            timings_path(work.folder).unlink(missing_ok=True)

    _everywhere(work.processes, clear)
    _clear_leftovers(work)


def _clear_leftovers(work: Work) -> None:
    """Take out what killed runs were writing under the names that this one writes."""
    others = (timings_path(work.folder).name, RECORD)
    _everywhere(work.processes, lambda: remove_leftovers(work.folder, [*work.files, *map(poor_name, KINDS)], others))


def _everywhere(processes: Processes, clear: Callable[[], None]) -> None:
    """In the main process, then in the others, whose folder can be another host's."""
    processes.gathered(lambda: clear() if processes.is_main else None)
    processes.gathered(lambda: None if processes.is_main else clear())


def _refuse_a_bad_model(work: Work, survey: Survey) -> None:
    predictions = torch.from_numpy(np.array(StoredArray(work.files[ATTENTION].path, "predictions")[:]))
    labels = work.opened.model.standardise(survey.labels).cpu().to(predictions.dtype)
    require_better_than_mean(predictions, labels, work.opened.name)


def _explained(
    work: Work, settings: CompareSettings, survey: Survey, truths: tuple[Truth, ...], passes: Sequence[Pass]
) -> Explained:
    def read(name: str) -> Arrays:
        return read_scores(work.files[name].path)[0]

    def heads(key: str) -> Floats:
        return np.asarray(StoredArray(work.files[ATTENTION].path, key)[:], dtype=np.float64)

    scores: dict[str, Floats] = {}
    completeness: dict[str, float] = {}
    for name in chosen_methods(settings.methods):
        found = read(name)
        scores[name] = found["scores"].astype(np.float64)
        if "delta" in found:
            completeness[name] = float(np.median(np.abs(found["delta"]) / np.abs(found["difference"])))
    timings = read_timings(work.folder)
    pieces = {name: survey.pieces(one.rows) for one in passes for name in one.depends_on}
    return Explained(
        truths=truths,
        shapley=read_shapley(work, settings),
        scores=scores,
        pixel_maps={
            name: read(PIXEL + name)["maps"].astype(np.float64)
            for name in chosen_methods(settings.methods, PIXEL_METHODS)
        },
        maps={query: StoredArray(work.files[ATTENTION].path, f"{query}_map") for query in QUERIES},
        head_columns={
            "mass_special": heads("cls_special_mass"),
            "entropy": heads("cls_entropy"),
            "attention_distance": heads("attention_distance"),
        },
        predictions=work.opened.model.to_units(torch.from_numpy(heads("predictions"))).numpy(),
        timings={name: summary(timings, name, [piece.sha256 for piece in found]) for name, found in pieces.items()},
        completeness=completeness,
        survey=survey,
    )


def _software() -> dict[str, str]:
    """Versions of the libraries that scores depend on; this project's own code stands with each score."""
    return {name: version(name) for name in ("torch", "transformers", "captum", "peft", "numpy")}
