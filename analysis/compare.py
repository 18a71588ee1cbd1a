"""Which attention heads matter, what does each look at, and which attribution method would have told us so?

examples:
  python -m analysis.compare
  python -m analysis.compare --num-pictures 64 --methods gate_ig,rollout_drop --output-dir results/two-methods
  python -m analysis.compare --model my-model --data my-pictures --device cuda

Without arguments: the bundled model, 16 test pictures it has never seen, the default methods. Writes tables (CSV),
figures (PNG, SVG), report.html and manifest.json to the output folder. A killed run goes on where it was. Options may
be spelt with - or _; settings may also come from a YAML file (--config), which the options override.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from analysis.answer import REFERENCE_FOLDER, compare_with_reference, describe_run, read_reference
from analysis.explain import (
    Explained,
    Stage,
    chosen_methods,
    explain,
    forward_seconds,
    method_settings,
    plan,
    with_output,
)
from analysis.figures import layer_table, write_figures
from analysis.intervals import bootstrap_indices, indicative
from analysis.manifest import manifest
from analysis.models import OpenedModel, open_model
from analysis.pictures import Pictures, open_pictures
from analysis.report import write_atomically, write_report
from analysis.run_tables import TABLES, run_tables
from analysis.settings import CompareSettings, read_settings, with_overrides
from analysis.tables import write_table
from attribution.methods import describe
from attribution.vit import head_layout

CONTROL_WARNING = "CONTROL RUN: a small random network that was never trained. Its heads mean nothing."


def parse(argv: list[str]) -> tuple[CompareSettings, argparse.Namespace]:
    """Settings and flags from the command line. Raises ValueError or OSError for what is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    texts = {
        "output_dir": "folder of the run (default: results/<model>-<data>-<pictures>)",
        "model": "bundled (default), tiny-random (a control), or a folder written by attribution.finetune",
        "data": "default, published, or a folder with metadata.csv",
        "methods": "names, comma-separated; default, all; see --list-methods",
        "num_pictures": "pictures to explain (default: 16)",
        "steps": "steps of path methods over heads (default: 16)",
        "pixel_steps": "steps of path methods over pixels (default: 8)",
        "batch_size": "pictures in one pass (default: 16)",
        "bootstrap_replicates": "resamples behind every interval (default: 2000)",
        "num_permutations": "permutations behind every p value (default: 9999)",
        "device": "cpu (default), cuda, cuda:1",
        "seed": "of the test pictures and of everything random (default: 0)",
    }
    for name in (field.name for field in fields(CompareSettings)):
        whole = isinstance(getattr(CompareSettings, name), int)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int if whole else str, default=None, help=texts[name])
    parser.add_argument("--config", type=Path, default=None, help="YAML file with any of these settings")
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed and how long it takes")
    parser.add_argument("--list-methods", action="store_true", help="list the methods and leave")
    argv = [_hyphenated(word) for word in argv]
    options = parser.parse_args(argv)
    settings = CompareSettings() if options.config is None else read_settings(options.config)
    known = {field.name for field in fields(CompareSettings)}
    given = {name: value for name, value in vars(options).items() if name in known and value is not None}
    return with_overrides(settings, given), options


def _hyphenated(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def estimate(stages: list[Stage], seconds_per_forward: float, num_pictures: int) -> str:
    """A table of what will be computed and how long it is expected to take."""
    lines = [f"{'stage':24s} {'passes per picture':>18s} {'seconds':>8s}"]
    for stage in stages:
        lines.append(
            f"{stage.name:24s} {stage.forwards:18.1f} {stage.forwards * num_pictures * seconds_per_forward:8.0f}"
        )
    total = sum(stage.forwards for stage in stages) * num_pictures * seconds_per_forward
    lines.append(f"{'total':24s} {sum(stage.forwards for stage in stages):18.1f} {total:8.0f}")
    return "\n".join(lines)


def prepare_folder(folder: Path) -> None:
    """Make the output folder and check that it can be written to (OSError)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: no permission to write")


def remove_results(folder: Path) -> None:
    """Take out the results of an earlier run (never its scores), so that none stands beside results it does not match.

    ``manifest.json`` goes first and comes back last: a folder without it is not finished.
    """
    names = ["manifest.json", "report.html", *(f"{name}.csv" for name in TABLES)]
    figures = [path for kind in ("png", "svg") for path in sorted((folder / "figures").glob(f"*.{kind}"))]
    for path in (*(folder / name for name in names), *figures):
        path.unlink(missing_ok=True)


def run(settings: CompareSettings, *, dry_run: bool = False) -> list[str]:
    """Do a comparison; returns the lines of the short answer. Raises ValueError or OSError for bad input."""
    chosen_methods(settings.methods)
    opened = open_model(settings.model, settings.device)
    layout = head_layout(opened.model)
    pictures = open_pictures(
        settings.data,
        settings.num_pictures,
        seed=settings.seed,
        image_size=opened.model.config.image_size,
        patch_size=opened.model.config.image_size // layout.num_rows,
        target_names=opened.model.config.target_names,
    )
    settings = with_output(settings, len(pictures.images))
    stages = plan(opened, settings)
    seconds = forward_seconds(opened, pictures, settings)
    if dry_run:
        return [estimate(stages, seconds, len(pictures.images))]
    folder = Path(str(settings.output_dir))
    prepare_folder(folder)
    total = sum(stage.forwards for stage in stages) * len(pictures.images)
    print(
        f"about {total * seconds / 60:.1f} minutes for {len(pictures.images)} pictures; results in {folder}", flush=True
    )
    with tqdm(total=round(total), unit="pass", smoothing=0.05) as bar:

        def on_progress(stage: str, done: float) -> None:
            bar.set_description(stage)
            bar.update(min(round(done), round(total) - bar.n))

        explained = explain(opened, pictures, settings, folder / "scores", on_progress)
    return write_results(folder, settings, opened, pictures, explained)


def write_results(
    folder: Path, settings: CompareSettings, opened: OpenedModel, pictures: Pictures, explained: Explained
) -> list[str]:
    """Tables, figures, report and manifest from per-picture scores; returns the lines of the short answer."""
    count = len(pictures.images)
    is_reference = folder.resolve() == REFERENCE_FOLDER
    reference = None if is_reference or opened.is_control else read_reference()
    indices = bootstrap_indices(count, settings.bootstrap_replicates, seed=settings.seed)
    tables = run_tables(settings, opened, pictures, explained, indices)
    remove_results(folder)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    scorecard, agreement = tables["head_scorecard"], tables.get("agreement")
    answer = describe_run(scorecard, agreement)
    caution = indicative(count)
    warnings = [CONTROL_WARNING] if opened.is_control else []
    if not opened.is_control and not is_reference:
        answer += compare_with_reference(scorecard, agreement, reference, opened.sha256, pictures.identity)
    if caution:
        warnings.append(
            f"{caution[0].upper()}{caution[1:]}: intervals are too narrow at this number and ranks unstable."
        )
    if pictures.patch_labels is None:
        warnings.append("These pictures come without masks: where heads look is shown, but not scored.")
    note = f"{count} pictures" + (", indicative only." if caution else ".")
    figures = write_figures(
        folder / "figures",
        scorecard=scorecard,
        agreement=agreement,
        localization=tables.get("localization"),
        pixel_localization=tables.get("pixel_localization"),
        layers=layer_table(explained.truth, indices),
        images=pictures.images,
        maps=explained.maps["cls"],
        pixel_maps=explained.pixel_maps,
        masks=pictures.masks,
        note=("Control, random weights. " if opened.is_control else "") + note,
    )
    record = manifest(
        settings=asdict(settings),
        model=opened.identity | {"config": asdict(opened.model.config)},
        data=pictures.identity | {"sha256": pictures.sha256},
        device=settings.device,
        done=count,
        total=count,
    )
    effect = "ablation_zero_var_pct"
    write_report(
        folder / "report.html",
        title=("CONTROL: " if opened.is_control else "") + "Which heads matter, and which method tells",
        answer=answer,
        warnings=warnings,
        figures=figures,
        tables=[
            ("Heads by effect", "The 20 heads whose removal hurts most; all heads in head_scorecard.csv.",
             scorecard.nlargest(20, effect)),
            *(
                [("Agreement with ablation", "All statistics in agreement.csv.",
                  agreement[(agreement["statistic"] == "spearman") & (agreement["estimator"] == "mean")])]
                if agreement is not None
                else []
            ),
            ("Methods", "What each method is; what it took in seconds and memory stands in methods.csv.",
             tables["methods"].drop(columns=["seconds", "peak_mb"])),
        ],
        manifest=record,
    )  # fmt: skip
    write_atomically(folder / "manifest.json", (json.dumps(record, indent=2) + "\n").encode())
    return [*warnings, *answer, f"All of it: {folder / 'report.html'}"]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    start = time.perf_counter()
    try:
        settings, options = parse(sys.argv[1:] if argv is None else argv)
        if options.list_methods:
            print(describe(settings=method_settings(settings)))
            return 0
        lines = run(settings, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    if not options.dry_run:
        print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
