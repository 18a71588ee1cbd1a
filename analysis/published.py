"""The procedure of a study's released code beside the true head ablation: same model, same pictures.

examples:
  python -m analysis.published
  python -m analysis.published --model my-model --data my-pictures --num-pictures 64 --shuffles 0

The study is Bahador 2025 (arXiv 2503.18762); the released code is that of vision-mech-interp-attn-head 0.1.8. What it
does is told fault by fault in attribution/released_procedure.py. Each fault is committed alone and left out alone, and
the whole is repeated in shuffled orders of the scenarios: what depends on the order is no property of a head.

Without arguments: the bundled model that was trained on pictures of the preset published, 64 of its test pictures in
batches of 32, five shuffled orders. Writes to the output folder trend.csv (one row a configuration and order),
scenarios.csv, maps.csv, figures, manifest.json, and in released-format/ the files that the released code writes: as
released, and with true ablation. A killed run goes on where it was. The model that is given is never changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.artists import save_figure
from analysis.audit import (
    AS_RELEASED_NAME,
    CONFIGURATIONS,
    SHUFFLED,
    TRUE_NAME,
    map_table,
    order_name,
    ordered,
    read_maps,
    scenario_rows,
    trend_table,
)
from analysis.audit_plots import AUDIT_FIGURES, audit_figures
from analysis.checked_arrays import read_checked, write_checked
from analysis.manifest import manifest
from analysis.models import BUNDLED_FOLDER, OpenedModel, open_model
from analysis.own_code import code_sha256
from analysis.own_files import Outputs, by_command, figure_files, finish_writing, held, require_own, start_writing
from analysis.pictures import Pictures, open_source
from analysis.released_formats import released_files, write_released_format
from analysis.run_folder import prepare_folder
from analysis.settings import MOST
from analysis.tables import write_table
from attribution.checkpoint import weights_sha256
from attribution.heads import layout_with_cls, read_attention
from attribution.own_folder import require_folder_name
from attribution.preprocessing import PREPROCESSING, mean_and_std
from attribution.released_procedure import (
    AS_RELEASED,
    Faults,
    losses,
    model_as_loaded,
    scenario_predictions,
    scenarios_of,
    state_predictions,
)
from attribution.vit import head_layout
from data_synth import REGIONS, TARGET_NAMES

PUBLISHED_MODEL = "published"
COMMAND = "analysis.published"
FILES = ("manifest.json", "trend.csv", "scenarios.csv", "maps.csv")


@dataclass(frozen=True)
class AuditSettings:
    """The options of the command."""

    model: str = PUBLISHED_MODEL
    data: str = "published"
    output_dir: str = "results/published-audit"
    num_pictures: int = 64
    batch_size: int = 32
    shuffles: int = 5
    other_preprocessing: str | None = None
    device: str = "cpu"
    seed: int = 0


def check_settings(settings: AuditSettings) -> None:
    """Raise ValueError naming the first option that makes no sense."""
    require_folder_name(settings.output_dir)
    for name, least in (("num_pictures", 2), ("batch_size", 1), ("shuffles", 0), ("seed", 0)):
        if not least <= getattr(settings, name) <= MOST:
            told = f"--{name.replace('_', '-')}: expected {least} or more, up to {MOST}"
            raise ValueError(f"{told}, got {getattr(settings, name)}")
    if settings.other_preprocessing is not None:
        mean_and_std(settings.other_preprocessing)


def another_preprocessing(opened: OpenedModel, name: str | None) -> str:
    """What `other_preprocessing` does: as named, else ImageNet's constants for a model trained without them, and /255
    alone for one trained with them. ValueError where that is what the model was trained with."""
    config = opened.model.config
    own = (tuple(config.image_mean), tuple(config.image_std))
    if name is None:
        name = "unit" if own == PREPROCESSING["imagenet"] else "imagenet"
    if mean_and_std(name) == own:
        raise ValueError(f"--other-preprocessing {name}: that is what the model was trained with, expected another")
    return name


def states_needed(settings: AuditSettings) -> dict[tuple[str, int], Faults]:
    """(Configuration, number of the order) -> the faults that its predictions depend on: when and against what they are
    reported is not among them."""
    found = {}
    for name, faults in CONFIGURATIONS.items():
        for number in range(settings.shuffles + 1 if name in SHUFFLED else 1):
            found[name, number] = replace(faults, after_forward=False, raw_labels=False)
    return found


def audit(settings: AuditSettings, *, overwrite: bool = False) -> list[str]:
    """Do the audit; gives the lines of the short answer. Raises ValueError or OSError for bad input."""
    check_settings(settings)
    is_own = settings.model == PUBLISHED_MODEL
    opened = open_model(str(BUNDLED_FOLDER.parent / PUBLISHED_MODEL) if is_own else settings.model, settings.device)
    config, layout = opened.model.config, head_layout(opened.model)
    if config.target_names != TARGET_NAMES:
        expected, got = ", ".join(TARGET_NAMES), ", ".join(config.target_names)
        raise ValueError(f"--model: expected one that reads {expected}, as the study's, got {got}")
    model_as_loaded(opened.model, AS_RELEASED)  # refuses a model whose fine-tuning cannot be taken off
    other = another_preprocessing(opened, settings.other_preprocessing)
    source = open_source(
        settings.data,
        settings.num_pictures,
        seed=settings.seed,
        image_size=config.image_size,
        patch_size=config.image_size // layout.num_rows,
        target_names=config.target_names,
    )
    pictures = source.draw(range(source.count))
    outputs = outputs_of(Path(settings.output_dir), scenarios_of(opened.model))
    require_own(outputs)
    prepare_folder(outputs.folder)
    with held(outputs):
        return _audited(settings, opened, pictures, source.identity, other, overwrite)


def _audited(
    settings: AuditSettings,
    opened: OpenedModel,
    pictures: Pictures,
    data: dict[str, Any],
    other: str,
    overwrite: bool,
) -> list[str]:
    """Compute and write, in a folder that is held."""
    config = opened.model.config
    wanted = states_needed(settings)
    scenarios = scenarios_of(opened.model)
    scores = Path(settings.output_dir) / "scores"
    computed: dict[tuple[Faults, int], Tensor] = {}
    differ = dict.fromkeys((faults, number) for (_, number), faults in wanted.items())
    total = sum(_num_states(faults, scenarios) for faults, _ in differ) * len(pictures.images)
    with tqdm(total=total, unit="picture", smoothing=0.05) as bar:
        for faults, number in differ:
            computed[faults, number] = _states(
                scores, opened, pictures, faults, number, other, settings, bar.update, overwrite
            )
    states = {(name, number): computed[faults, number] for (name, number), faults in wanted.items()}
    if opened.sha256 != weights_sha256(opened.model):
        raise RuntimeError("the model was changed by the audit, its numbers mean nothing")
    in_units = torch.from_numpy(pictures.labels)
    standardised = opened.model.standardise(pictures.labels).to("cpu", torch.float64)
    table = pd.concat(
        [
            scenario_rows(
                name,
                order_name(number),
                ordered(scenarios, number, settings.seed),
                found,
                standardised,
                in_units,
                config.label_std,
                settings.batch_size,
            )
            for (name, number), found in states.items()
        ],
        ignore_index=True,
    )
    maps = _maps(opened, pictures)
    return _write(settings, opened, data, other, table, maps, states, standardised, in_units)


def outputs_of(folder: Path, scenarios: Sequence[tuple[int, int]]) -> Outputs:
    """Every file that an audit of these heads may write, stored predictions apart."""
    folders = map(_released_folder, (AS_RELEASED_NAME, TRUE_NAME))
    released = (f"{one}/{name}" for one in folders for name in released_files(scenarios))
    names = (*FILES, *figure_files(AUDIT_FIGURES), *released)
    return Outputs(folder, COMMAND, names, earlier=lambda: by_command(folder, COMMAND))


def _released_folder(name: str) -> str:
    return f"released-format/{name.replace('_', '-')}"


def _num_states(faults: Faults, scenarios: Sequence[tuple[int, int]]) -> int:
    """Passes of a picture that are told of: a sweep counts the intact model too."""
    return len(scenarios) + (not faults.one_row and not faults.never_restore)


def _states(
    scores: Path,
    opened: OpenedModel,
    pictures: Pictures,
    faults: Faults,
    number: int,
    other: str,
    settings: AuditSettings,
    passed: Callable[[int], Any],
    overwrite: bool,
) -> Tensor:
    """Predictions of every state, `[1 + scenario image target]`: read back where they are stored, else computed."""
    scenarios = ordered(scenarios_of(opened.model), number, settings.seed)
    pixels = hashlib.sha256(np.ascontiguousarray(pictures.images).tobytes()).hexdigest()
    identity = json.dumps(
        {
            "model": opened.sha256,
            "pictures": pixels,
            "faults": asdict(faults),
            "scenarios": scenarios,
            "other_preprocessing": other if faults.other_preprocessing else "",
            "code": code_sha256(_states, opened.model),
        },
        sort_keys=True,
    )
    path = scores / f"states-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    shape = (1 + len(scenarios), len(pictures.images), len(opened.model.config.target_names))
    if not overwrite:
        stored = read_checked(path, identity) or {}
        found = torch.from_numpy(stored["predictions"]) if "predictions" in stored else None
        if found is not None and tuple(found.shape) == shape:
            passed(len(pictures.images) * _num_states(faults, scenarios))
            return found
    model = model_as_loaded(opened.model, faults)
    if faults.other_preprocessing:
        image_mean, image_std = mean_and_std(other)
        model.config = replace(model.config, image_mean=image_mean, image_std=image_std)
    pixel_values = model.preprocess(pictures.images).to(model.device, model.dtype)
    found = state_predictions(
        model, pixel_values, scenarios, faults, batch_size=settings.batch_size, passed=passed
    ).contiguous()
    scores.mkdir(exist_ok=True)
    write_checked(path, {"predictions": found.numpy()}, identity)
    return found


def _maps(opened: OpenedModel, pictures: Pictures) -> pd.DataFrame | None:
    """The table of attention maps; None for pictures without masks."""
    if pictures.patch_labels is None:
        return None
    special = layout_with_cls(opened.model).num_special_tokens
    pixel_values = opened.model.preprocess(pictures.images).to(opened.model.device, opened.model.dtype)
    _, found = read_attention(opened.model, pixel_values, lambda layers: read_maps(layers, special))
    chirp = (pictures.patch_labels == REGIONS.index("chirp")).reshape(len(pictures.images), -1)
    return map_table({name: maps.cpu().double().numpy() for name, maps in found.items()}, chirp)


def _write(
    settings: AuditSettings,
    opened: OpenedModel,
    data: dict[str, Any],
    other: str,
    table: pd.DataFrame,
    maps: pd.DataFrame | None,
    states: dict[tuple[str, int], Tensor],
    standardised: Tensor,
    in_units: Tensor,
) -> list[str]:
    folder = Path(settings.output_dir)
    scenarios = scenarios_of(opened.model)
    outputs = outputs_of(folder, scenarios)
    trend = trend_table(table)
    figures = audit_figures(table, trend, maps)
    record = manifest(
        settings=asdict(settings) | {"other_preprocessing": other},
        model=opened.identity | {"config": asdict(opened.model.config)},
        data=data,
        device=settings.device,
        done=len(standardised),
        total=len(standardised),
    )
    record["command"] = ["python", "-m", COMMAND, *sys.argv[1:]]
    start_writing(outputs)
    write_table(trend, folder / "trend.csv")
    write_table(table, folder / "scenarios.csv")
    if maps is not None:
        write_table(maps, folder / "maps.csv")
    for name in (AS_RELEASED_NAME, TRUE_NAME):
        faults, found = CONFIGURATIONS[name], states[name, 0]
        labels = in_units if faults.raw_labels else standardised
        reported = scenario_predictions(found, faults, settings.batch_size)
        write_released_format(
            folder / _released_folder(name),
            scenarios,
            losses(reported, labels, settings.batch_size).tolist(),
            reported.numpy(),
            float(losses(found[:1], labels, settings.batch_size)[0]),
            found[0].numpy(),
        )
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / name)
    finish_writing(outputs, record)
    return [*describe(trend), f"All of it: {folder}"]


def describe(trend: pd.DataFrame) -> list[str]:
    """What the audit found, in a few lines."""
    lines = []
    for name in (AS_RELEASED_NAME, "without_never_restore", TRUE_NAME):
        row = trend[(trend["configuration"] == name) & (trend["order"] == order_name(0))].iloc[0]
        early, sixth, late = (
            "–" if np.isnan(row[f"{part}_pct"]) else f"{row[f'{part}_pct']:+.3g} %"
            for part in ("early", "sixth", "late")
        )
        lines.append(
            f"{name}: layers 1-3 {early}, layer 6 {sixth}, layers 6-12 {late} of the baseline loss "
            f"{row['baseline_loss']:.4g}; rank correlation with the layer {row['spearman_layer']:.2f}; "
            f"{row['num_unchanged']} of {row['num_scenarios']} scenarios unchanged."
        )
    shuffled = trend[(trend["configuration"] == AS_RELEASED_NAME) & (trend["order"] != order_name(0))]
    if len(shuffled):
        lines.append(
            f"as_released in {len(shuffled)} shuffled orders: rank correlation with the layer "
            f"{shuffled['spearman_layer'].min():.2f} to {shuffled['spearman_layer'].max():.2f}, with the place in the "
            f"order {shuffled['spearman_position'].min():.2f} to {shuffled['spearman_position'].max():.2f}."
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 3 stopped before the end)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = AuditSettings()
    parser.add_argument(
        "--model", default=defaults.model, help="published (default), bundled, or a folder of attribution.finetune"
    )
    parser.add_argument("--data", default=defaults.data, help="published (default), default, or a folder")
    parser.add_argument("--output-dir", default=defaults.output_dir)
    parser.add_argument("--num-pictures", type=int, default=defaults.num_pictures, help="pictures (default: 64)")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="of the procedure (default: 32)")
    parser.add_argument("--shuffles", type=int, default=defaults.shuffles, help="shuffled orders (default: 5)")
    parser.add_argument(
        "--other-preprocessing", default=None, help=f"{', '.join(PREPROCESSING)} (default: not the model's own)"
    )
    parser.add_argument("--device", default=defaults.device, help="cpu (default), cuda, cuda:1")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of pictures and shuffled orders (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="compute everything anew")
    options = vars(parser.parse_args(argv))
    overwrite = options.pop("overwrite")
    try:
        lines = audit(AuditSettings(**options), overwrite=overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 3
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
