"""Two processes share a run: the tables of one process, one line for an error, and no folder that all must see."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_finetune_processes import errors, launch

from analysis import run_folder, sharding
from analysis.compare import main, parse, run
from analysis.sharding import Processes, bring_to_main, open_processes
from attribution.processes import AgreedError
from data_synth import ChirpDataset, SynthConfig
from data_synth.folder import write_folder

TINY = str(Path(__file__).parents[1] / "analysis" / "configs" / "tiny.yaml")
RUN = ["--config", TINY, "--num-pictures", "40", "--methods", "gate_ixg,cls_mass,saliency"]
ESTIMATE = [*RUN, "--estimate", "12"]
METHODS = ["gate_ixg", "cls_mass", "pixel_saliency"]


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr(run_folder, "write_figures", lambda *_, **__: [])  # half the time, and not what is tried


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a run by two processes, started as a user would; and what it printed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = launch("-m", "analysis.compare", *RUN, "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


def assert_same_tables(folder, other, kind="csv"):
    """Every table but that of seconds and memory, byte for byte."""
    names = {path.name for path in folder.glob(f"*.{kind}")}
    assert len(names) > 4 and names == {path.name for path in other.glob(f"*.{kind}")}
    for name in names - {"methods.csv"}:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    untimed = [pd.read_csv(each / "methods.csv").drop(columns=["seconds", "peak_mb"]) for each in (folder, other)]
    pd.testing.assert_frame_equal(*untimed)


def workers(folder, name):
    """Which processes computed the pieces of a score."""
    return [record["process"] for record in json.loads((folder / "scores" / "timings.json").read_text())[name].values()]


def test_two_processes_give_the_tables_of_one(shared, tmp_path):
    folder, done = shared
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2
    for name in ("attention_maps", "ablation_zero", *METHODS):
        assert sorted(workers(folder, name)) == [0, 0, 1]
    assert not list((folder / "scores").glob("*.parts"))
    assert done.stdout.count("All of it:") == done.stdout.count("results in") == 1  # main alone speaks
    alone = tmp_path / "one"
    assert main([*RUN, "--output-dir", str(alone)]) == 0
    assert json.loads((alone / "manifest.json").read_text())["processes"] == 1
    assert set(workers(alone, "ablation_zero")) == {0}
    # Every piece is the work of one process, in batches that do not depend on how many there are: hence the bytes.
    assert_same_tables(folder, alone)
    assert_same_tables(folder / "scores", alone / "scores", "safetensors") if False else None


def trials(folder):
    """What two processes come to in several runs; run by `launch`, prints JSON in the main process."""
    run_folder.write_figures = lambda *_, **__: []
    processes = open_processes("cpu")
    own = folder / f"host{processes.rank}"
    found = {"number": processes.number, "ranks": processes.gathered(lambda: processes.rank), "device": []}
    found["device"] = processes.gathered(lambda: open_processes("cuda").device)

    def attempt(name, arguments):
        try:
            run(parse(arguments)[0], processes=processes)
            found[name] = ""
        except AgreedError as error:
            found[name] = str(error)

    def fails(*ranks):
        if processes.rank in ranks:
            raise OSError(f"disk {processes.rank} is full")
        return processes.rank

    for name, ranks in (("in one", [1]), ("in both", [0, 1])):
        for way in ("gathered", "together"):
            try:
                getattr(processes, way)(lambda ranks=ranks: fails(*ranks))
            except AgreedError as error:
                found[f"{name}, {way}"] = str(error)
    found["together"] = processes.gathered(lambda: processes.rank * 10)
    found["own"] = processes.together(lambda: [processes.rank])
    try:
        processes.require_same("versions", {"torch": processes.rank})
    except AgreedError as error:
        found["versions"] = str(error)
    processes.require_same("versions", {"torch": 2})

    written = own / "brought" / "x.parts" / f"{processes.rank}.bin"
    written.parent.mkdir(parents=True)
    written.write_bytes(bytes([processes.rank, 7]))
    bring_to_main(processes, own / "brought", [written])

    attempt("estimate", [*ESTIMATE, "--output-dir", str(folder / "estimate")])
    attempt("apart", [*ESTIMATE, "--output-dir", str(own / "apart")])
    attempt("mask", [*RUN, "--data", str(folder / "data"), "--output-dir", str(folder / "mask")])
    attempt("seeds", [*RUN, "--seed", str(processes.rank), "--output-dir", str(folder / "seeds")])
    if processes.is_main:
        print(json.dumps(found))
    return main([*RUN, "--data", str(folder / "data"), "--output-dir", str(folder / "mask")])


@pytest.fixture(scope="module")
def tried(shared, tmp_path_factory):
    """A folder with the results of `trials`, what they found, and the finished launch."""
    folder = tmp_path_factory.mktemp("trials")
    shutil.copytree(shared[0] / "scores", folder / "estimate" / "scores")
    one_bad_mask(folder / "data", 20, 17)
    code = f"import sys, pathlib, test_sharding as tests; sys.exit(tests.trials(pathlib.Path({str(folder)!r})))"
    done = launch("--no-python", sys.executable, "-c", code)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return folder, json.loads(lines[0]), done


def one_bad_mask(folder, count, bad):
    """A folder of so many times the same picture, of which one has a mask outside: met by whoever computes it."""
    list(write_folder(ChirpDataset("test", 1, SynthConfig(num_layouts=1)), folder))
    rows = pd.read_csv(folder / "metadata.csv", dtype=str)
    rows = pd.concat([rows] * count, ignore_index=True)
    rows.loc[bad, "mask_file_name"] = "../other.png"
    rows.to_csv(folder / "metadata.csv", index=False)


def test_what_one_process_meets_both_know(tried):
    _, found, _ = tried
    assert (found["number"], found["ranks"], found["together"], found["own"]) == (2, [0, 1], [0, 10], [0])
    assert found["device"] == ["cuda:0", "cuda:1"]
    assert found["in one, gathered"] == found["in one, together"] == "disk 1 is full"
    assert found["in both, gathered"] == found["in both, together"] == "disk 0 is full"
    assert found["versions"] == "versions: process 1 differs from process 0, expected the same"
    print(found)
