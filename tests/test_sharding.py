"""Two processes share a run: the tables of one process, one line for an error, and no folder that all must see."""

import json
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

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
RUN = ["--config", TINY, "--num-pictures", "40", "--methods", "gate_ixg,cls_mass,saliency", "--truths", "zero"]
ESTIMATE = [*RUN, "--estimate", "12"]
SCORES = ["attention_maps", "ablation_zero", "gate_ixg", "cls_mass", "pixel_saliency"]


def without_figures(*_, **__):
    """Instead of figures: they take half the time, and are not what is tried."""
    return []


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(run_folder, "write_figures", without_figures)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a run by two processes, started as a user would; and what it printed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = launch("-m", "analysis.compare", *RUN, "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


def assert_same_tables(folder, other):
    """Every table byte for byte, but for seconds and memory."""
    names = {path.name for path in folder.glob("*.csv")}
    assert len(names) > 4 and names == {path.name for path in other.glob("*.csv")}
    for name in names - {"methods.csv"}:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    timed = ["seconds", "peak_mb", "forwards_measured"]
    untimed = [pd.read_csv(each / "methods.csv").drop(columns=timed) for each in (folder, other)]
    pd.testing.assert_frame_equal(*untimed)


def workers(folder, name):
    """Which processes computed the pieces of a score."""
    records = json.loads((folder / "scores" / "timings.json").read_text())[name]
    return sorted(record["process"] for record in records.values())


def processes_of(folder):
    return json.loads((folder / "manifest.json").read_text())["processes"]


def test_two_processes_give_the_tables_of_one(shared, tmp_path):
    folder, done = shared
    alone = tmp_path / "one"
    assert main([*RUN, "--output-dir", str(alone)]) == 0
    assert (processes_of(folder), processes_of(alone)) == (2, 1)
    for name in SCORES:  # 40 pictures in three pieces, in turn
        assert (workers(folder, name), workers(alone, name)) == ([0, 0, 1], [0, 0, 0])
    assert not list((folder / "scores").glob("*.parts")) and (folder / "report.html").exists()
    assert done.stdout.count("All of it:") == done.stdout.count("results in") == 1  # main alone speaks
    assert errors(done.stderr) == []
    # A piece is the work of one process, in batches that do not depend on how many there are: hence equal bytes.
    assert_same_tables(folder, alone)
    for name in SCORES:
        mine, others = (each / "scores" / f"{name}.safetensors" for each in (folder, alone))
        assert mine.read_bytes() == others.read_bytes(), name


def trials(folder):
    """What two processes come to in several runs; run by `launch`, prints JSON in the main process."""
    run_folder.write_figures = without_figures
    processes = open_processes("cpu")
    own = folder / f"host{processes.rank}"
    found = {"number": processes.number, "ranks": processes.gathered(lambda: processes.rank)}
    found["devices"] = processes.gathered(lambda: [open_processes(name).device for name in ("cuda", "cuda:3", "cpu")])

    def attempt(name, arguments):
        try:
            run(parse(arguments)[0], processes=processes)
            found[name] = ""
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"

    data = ["--data", str(folder / "data"), "--output-dir", str(folder / "none")]
    attempt("estimate", [*ESTIMATE, "--output-dir", str(folder / "estimate")])
    attempt("apart", [*RUN, "--output-dir", str(own / "apart")])
    attempt("seeds", [*RUN, "--seed", str(processes.rank), "--output-dir", str(folder / "none")])
    attempt("unknown", [*RUN, "--methods", "magic", "--output-dir", str(folder / "none")])
    attempt("sample", [*RUN, *data, "--estimate", "30"])
    if processes.is_main:
        print(json.dumps(found))
    return main([*RUN, *data])


def one_bad_mask(folder, count, bad):
    """A folder of so many times the same picture; the mask of one is refused by the process that computes it."""
    list(write_folder(ChirpDataset("test", 1, SynthConfig(num_layouts=1)), folder))
    rows = pd.concat([pd.read_csv(folder / "metadata.csv", dtype=str)] * count, ignore_index=True)
    rows.loc[bad, "mask_file_name"] = "../other.png"
    rows.to_csv(folder / "metadata.csv", index=False)


@pytest.fixture(scope="module")
def tried(shared, tmp_path_factory):
    """A folder with the results of `trials`, what they found, and the finished launch."""
    folder = tmp_path_factory.mktemp("trials")
    shutil.copytree(shared[0] / "scores", folder / "estimate" / "scores")
    # What only the other host has finished is of no use to the main process.
    (folder / "host1" / "apart" / "scores").mkdir(parents=True)
    shutil.copy(shared[0] / "scores" / "cls_mass.safetensors", folder / "host1" / "apart" / "scores")
    one_bad_mask(folder / "data", 20, 17)
    code = f"import sys, pathlib, test_sharding as tests; sys.exit(tests.trials(pathlib.Path({str(folder)!r})))"
    done = launch("--no-python", sys.executable, "-c", code)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return folder, json.loads(lines[0]), done


def test_processes_know_who_they_are(tried):
    _, found, _ = tried
    assert (found["number"], found["ranks"]) == (2, [0, 1])
    assert found["devices"] == [["cuda:0", "cuda:3", "cpu"], ["cuda:1", "cuda:3", "cpu"]]


def test_two_processes_estimate_what_one_does(shared, tried, tmp_path):
    folder, found, _ = tried
    assert found["estimate"] == ""
    shutil.copytree(shared[0] / "scores", tmp_path / "scores")
    assert main([*ESTIMATE, "--output-dir", str(tmp_path)]) == 0
    assert (processes_of(folder / "estimate"), processes_of(tmp_path)) == (2, 1)
    assert workers(folder / "estimate", "effect_predictor") == [0, 0, 1]
    assert len(workers(folder / "estimate", "ablation_zero_sample")) == 1  # 12 pictures: one piece
    assert workers(folder / "estimate", "gate_ixg") == [0, 0, 1]  # of the run before, reused
    assert_same_tables(folder / "estimate", tmp_path)
    assert "ablation_zero_estimated_var_pct" in pd.read_csv(tmp_path / "head_scorecard.csv")


def test_hosts_need_no_common_folder(shared, tried):
    folder, found, _ = tried
    assert found["apart"] == ""
    assert_same_tables(folder / "host0" / "apart", shared[0])
    for name in SCORES:
        mine, others = (each / "scores" / f"{name}.safetensors" for each in (folder / "host0" / "apart", shared[0]))
        assert mine.read_bytes() == others.read_bytes(), name
    left = {path.name for path in (folder / "host1" / "apart").rglob("*") if path.is_file()}
    assert left <= {"cls_mass.safetensors"}  # pieces are not kept where nobody will look for them


def test_errors_are_agreed(tried):
    folder, found, _ = tried
    assert found["seeds"].startswith("AgreedError: model, settings or versions: process 1 differs from process 0")
    assert found["unknown"].startswith("AgreedError: methods: unknown magic, expected some of")
    assert found["sample"] == ("AgreedError: --estimate: expected from 3 to 19 of 20 pictures to sweep, got 30")
    assert not (folder / "none" / "manifest.json").exists()


def test_an_error_that_one_process_meets_ends_both_with_one_line(tried):
    _, _, done = tried
    assert done.returncode != 0 and re.search(r"exitcode *: 2 ", done.stderr)
    (line,) = errors(done.stderr)
    assert line.endswith("mask_file_name '../other.png': expected a path below the folder")
    # The launcher ends with a traceback of its own, in which nothing of ours stands.
    assert not re.search(r'File ".*/(analysis|attribution|data_synth|tests)/', done.stderr)


@pytest.fixture
def meet(monkeypatch):
    """`meet(number, work)`: what `work(processes)` gives in so many threads, each of which stands for a process."""
    place = threading.local()

    def run_all(number, work):
        barrier, brought = threading.Barrier(number, timeout=60), [[]] * number

        def gather(mine):
            brought[place.rank] = mine
            barrier.wait()
            found = [each for one in brought for each in one]
            barrier.wait()
            return found

        def one(rank):
            place.rank = rank
            try:
                return work(Processes(number, rank))
            except AgreedError as error:
                return str(error)

        monkeypatch.setattr(sharding, "gather_object", gather)
        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(one, range(number)))

    return run_all


def failing(*ranks):
    def work(processes):
        def compute():
            if processes.rank in ranks:
                raise OSError(f"disk {processes.rank} is full")
            return processes.rank * 10

        return [processes.gathered(compute), processes.together(compute)]

    return work


def test_what_is_found_reaches_all_in_order(meet):
    assert meet(3, failing()) == [[[0, 10, 20], own] for own in (0, 10, 20)]
    assert meet(3, failing(2)) == ["disk 2 is full"] * 3
    assert meet(3, failing(0, 1)) == ["disk 0 is full"] * 3

    def nameless(processes):
        return processes.together(lambda: (_ for _ in ()).throw(ValueError()))

    assert meet(2, nameless) == ["ValueError"] * 2
    found = meet(3, lambda processes: processes.require_same("versions", {"torch": processes.rank // 2}))
    assert found == ["versions: process 2 differs from process 0, expected the same"] * 3
    assert meet(3, lambda processes: processes.require_same("versions", {"torch": 2})) == [None] * 3


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bring(folders):
    def work(processes):
        folder = folders[processes.rank]
        written = folder / "m.parts" / f"{processes.rank}.bin"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_bytes(bytes([processes.rank, 7]))
        bring_to_main(processes, folder, [] if processes.rank == 2 else [written])

    return work


def test_the_main_process_is_given_what_it_does_not_see(meet, tmp_path):
    folders = [tmp_path / f"host{rank}" for rank in range(4)]
    assert meet(4, bring(folders)) == [None] * 4
    names = [f"m.parts/{rank}.bin" for rank in range(4)]
    assert files(folders[0]) == {names[0]: b"\0\7", names[1]: b"\1\7", names[3]: b"\3\7"}  # 2 told of nothing
    for rank in (1, 2, 3):
        assert files(folders[rank]) == {names[rank]: bytes([rank, 7])}


def test_in_a_shared_folder_nothing_is_written_again(meet, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "write_atomically", lambda *_: pytest.fail("written again"))
    assert meet(4, bring([tmp_path] * 4)) == [None] * 4
    assert len(files(tmp_path)) == 4
    # Two hosts of two processes: those of the main one's host have nothing to give.
    written = []
    monkeypatch.setattr(sharding, "write_atomically", lambda path, content: written.append((path.name, content)))
    assert meet(4, bring([tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"])) == [None] * 4
    assert written == [("3.bin", b"\3\7")]


def test_what_an_earlier_run_left_under_the_same_name_is_replaced(meet, tmp_path):
    folders = [tmp_path / "host0", tmp_path / "host1"]
    (folders[0] / "m.parts").mkdir(parents=True)
    (folders[0] / "m.parts" / "1.bin").write_bytes(b"of other settings")
    assert meet(2, bring(folders)) == [None] * 2
    assert files(folders[0])["m.parts/1.bin"] == b"\1\7"


def test_a_main_process_that_cannot_keep_what_it_is_given_tells_all(meet, tmp_path, monkeypatch):
    def full(path, _):
        raise OSError(f"{path.name}: disk is full")

    monkeypatch.setattr(sharding, "write_atomically", full)
    assert meet(2, bring([tmp_path / "a", tmp_path / "b"])) == ["1.bin: disk is full"] * 2


def test_one_process_exchanges_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "gather_object", lambda _: pytest.fail("nobody is there"))
    alone = Processes()
    assert (alone.number, alone.rank, alone.device, alone.is_main) == (1, 0, "cpu", True)
    assert alone.gathered(lambda: "a") == ["a"] and alone.together(lambda: "a") == "a"
    for way in (alone.gathered, alone.together):
        with pytest.raises(OSError, match="as it was"):
            way(lambda: (_ for _ in ()).throw(OSError("as it was")))
    alone.require_same("versions", object())
    bring_to_main(alone, tmp_path, [tmp_path / "not there"])
    assert not Processes(2, 1).is_main


def test_processes_that_were_launched_must_be_seen(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert open_processes("cuda:1") == Processes(device="cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(sharding, "PartialState", lambda **_: SimpleNamespace(num_processes=1, process_index=0))
    with pytest.raises(AgreedError, match="3 processes were launched, but accelerate sees 1"):
        open_processes("cpu")
