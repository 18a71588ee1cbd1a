"""Which attention heads matter, what does each look at, and which attribution method would have told us so?

examples:
  python -m analysis.compare
  python -m analysis.compare --num-pictures 64 --methods gate_ig,rollout_drop --output-dir results/two-methods
  python -m analysis.compare --model my-model --data my-pictures --device cuda

Without arguments: the bundled model, 16 test pictures it has never seen, the default methods. Writes tables (CSV),
figures (PNG, SVG), report.html and manifest.json to the output folder. A killed run goes on where it was; with more
pictures or methods only what is new is computed. Processes started by torchrun or accelerate share the pictures.
Options may be spelt with - or _; settings may also come from a YAML file (--config), which the options override.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from analysis.checks.trials import CHECKS, check_passes
from analysis.explain import all_passes, explain
from analysis.forecast import forecast, forward_seconds, total_forwards
from analysis.models import OpenedModel, open_model
from analysis.passes import Pass, chosen_methods, method_settings, of_these_pictures
from analysis.pictures import Pictures, PictureSource, open_source
from analysis.run_folder import own_folder, prepare_folder, with_output, write_results
from analysis.settings import CompareSettings, read_settings, with_overrides
from analysis.sharding import Processes, open_processes
from analysis.survey import in_pieces
from analysis.truth_passes import chosen_truths
from analysis.truths import poor_name, sample_of
from attribution.catalogue import describe
from attribution.processes import alike, end, process_number, tell
from attribution.vit import head_layout


def parse(argv: list[str]) -> tuple[CompareSettings, argparse.Namespace]:
    """Settings and flags from the command line. Raises ValueError or OSError for what is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    texts = {
        "output_dir": "folder of the run (default: results/<model>-<data>-<pictures>)",
        "model": "bundled (default), tiny-random (a control), or a folder written by attribution.finetune",
        "data": "default, published, colorbar (the control task), or a folder with metadata.csv",
        "methods": "names, comma-separated; default, all; -name leaves one out; see --list-methods",
        "truths": "zero, mean, resample, counterfactual, optimal, shapley; default (the first two and the fourth), all",
        "checks": f"further trials: {', '.join(CHECKS)}; default (none, or all with --methods all), all, none",
        "num_pictures": "pictures to explain (default: 16)",
        "steps": "steps of path methods over heads (default: 16)",
        "pixel_steps": "steps of path methods over pixels (default: 8)",
        "estimate": "sweep only this many pictures for every truth and estimate the effects on the others; auto: as "
        "many as --interval needs (default: sweep all)",
        "interval": "with --estimate auto: half the width of the intervals of the ten heads that matter most, as a "
        "share of the effect (default: 10%%)",
        "path_pictures": "the first so many pictures for methods of many passes (default: 32)",
        "resample_pictures": "... for resample ablation (default: 128)",
        "shapley_pictures": "... for Shapley values over gates (default: 16)",
        "curve_pictures": "... for removal curves, joint removal, knock-out, heads with and without text (default: 32)",
        "distraction_pictures": "... for whether heads matter more where something irrelevant is shown (default: 32)",
        "check_pictures": "... for the other checks (default: 16)",
        "permutations": "of the gates, for Shapley values (default: 10)",
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
    parser.add_argument("--overwrite", action="store_true", help="compute everything anew, stored scores are removed")
    parser.add_argument(
        "--adopt",
        type=int,
        default=0,
        metavar="N",
        help="keep scores that another version of the code stored where N pictures, computed anew, come out the same",
    )
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


def run(
    settings: CompareSettings,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    adopt: int = 0,
    processes: Processes | None = None,
) -> list[str]:
    """Do a comparison; returns the lines of the short answer, in the main process alone.

    Raises ValueError or OSError for bad input.
    """
    processes = Processes(device=settings.device) if processes is None else processes
    processes.together(lambda: chosen_methods(settings.methods))
    opened, source, first = processes.together(lambda: _open(settings, processes.device))
    settings = processes.together(lambda: with_output(of_these_pictures(settings, source), source.count))
    processes.together(lambda: sample_of(settings, source.count))
    passes = processes.together(lambda: _passes(opened, source, settings))
    seconds = forward_seconds(opened, first)
    if dry_run:
        return [forecast(passes, seconds, source.count)]
    folder = Path(str(settings.output_dir))
    names = [name for one in passes for name in one.depends_on]
    if settings.estimate is not None:
        names += [poor_name(kind) for kind in chosen_truths(settings, source)]
    with ExitStack() as held:
        # Of several processes the main one holds the folder; others may have another folder of that name.
        taken = own_folder(folder, names) if processes.is_main else nullcontext()
        processes.together(lambda: held.enter_context(taken))
        processes.together(lambda: prepare_folder(folder))
        total = total_forwards(passes, source.count)
        if processes.is_main:
            minutes = total * seconds / 60 / processes.number
            print(f"about {minutes:.1f} minutes for {source.count} pictures; results in {folder}", flush=True)
        return _explain(settings, opened, source, folder, total, processes, overwrite, adopt)


def _explain(
    settings: CompareSettings,
    opened: OpenedModel,
    source: PictureSource,
    folder: Path,
    total: float,
    processes: Processes,
    overwrite: bool,
    adopt: int,
) -> list[str]:
    """Compute and write, with a bar over ``total`` forward passes."""
    passed = 0.0
    with tqdm(total=round(total), unit="pass", smoothing=0.05, disable=not processes.is_main) as bar:

        def on_progress(name: str, done: float) -> None:
            nonlocal passed
            passed += done
            bar.set_description(name)
            bar.update(round(passed) - bar.n)

        try:
            explained = explain(
                opened,
                source,
                settings,
                folder / "scores",
                on_progress,
                processes=processes,
                overwrite=overwrite,
                adopt=adopt,
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f" after {passed:.0f} of {total:.0f} forward passes") from stop
    if explained is None:
        return processes.together(list)
    return processes.together(lambda: write_results(folder, settings, opened, source, explained, processes.number))


def _passes(opened: OpenedModel, source: PictureSource, settings: CompareSettings) -> list[Pass]:
    """Everything a run will compute, for its cost alone: the checks do not know yet in which order heads matter."""
    of_checks = check_passes(opened, source, settings, chosen_methods(settings.methods))
    return [*all_passes(opened, source, settings), *(one for found in of_checks.values() for one in found)]


def _open(settings: CompareSettings, device: str) -> tuple[OpenedModel, PictureSource, Pictures]:
    """The model, its pictures, and the first of them, whose errors are better met now than later."""
    opened = open_model(settings.model, device)
    layout = head_layout(opened.model)
    source = open_source(
        settings.data,
        settings.num_pictures,
        seed=settings.seed,
        image_size=opened.model.config.image_size,
        patch_size=opened.model.config.image_size // layout.num_rows,
        target_names=opened.model.config.target_names,
    )
    return opened, source, source.draw(in_pieces(range(source.count))[0])


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input, 3 stopped before the end)."""
    start = time.perf_counter()
    try:
        with alike():
            settings, options = parse(sys.argv[1:] if argv is None else argv)
        if options.list_methods:
            lines = [describe(settings=method_settings(settings))]
        else:
            processes = open_processes(settings.device)
            if options.adopt < 0 or (options.adopt and options.overwrite):
                raise ValueError(f"--adopt: expected a number of pictures, and no --overwrite, got {options.adopt}")
            lines = run(
                settings,
                dry_run=options.dry_run,
                overwrite=options.overwrite,
                adopt=options.adopt,
                processes=processes,
            )
            if lines and not options.dry_run:
                lines.append(f"{(time.perf_counter() - start) / 60:.1f} minutes in all.")
    except (ValueError, OSError) as error:
        tell(error)
        return 2
    except KeyboardInterrupt as stop:
        if process_number() == 0:
            print(f"stopped{stop}; the same command goes on from there", file=sys.stderr)
        return 3
    if process_number() == 0:
        print("\n".join(lines))
    end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
