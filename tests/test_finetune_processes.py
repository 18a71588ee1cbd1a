"""Fine-tuning by two processes: the results of one, and an end for both where either fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_finetune import Shades, arguments

from attribution import processes, training
from attribution.backbone import tiny_backbone
from attribution.checkpoint import load_pretrained, weights_sha256
from attribution.finetune import finetune, main
from attribution.finetune_settings import FinetuneSettings, check_settings
from attribution.processes import AgreedError, process_number, share, tell, together

TESTS = Path(__file__).parent


class Faulty(Shades):
    """Shades of which one training picture has a fault, met in training alone."""

    fault, index = "", -1

    def labels_array(self, count):
        """Labels as they should be: the statistics are not to fail before the training does."""
        return np.stack([Shades.__getitem__(self, index)["labels"] for index in range(count)])

    def pictures_sha256(self):
        """The same whatever the fault, for the same reason."""
        return "faulty"

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if self.fault and self.key[1] == 0 and index == self.index:
            if self.fault == "unreadable":
                raise OSError("picture.png: not a readable PNG file")
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            item["labels"] = item["labels"] * {"not finite": np.nan, "huge": 1e300}[self.fault]
        return item


def faulty(split, count, seed=0, apart=0):
    """`apart` moves the seed of every process but the first."""
    return Faulty(split, count, seed + apart * process_number())


@pytest.fixture
def options(tmp_path):
    """Options of a training of eight steps, 0 to 7, of a second or two."""
    tiny_backbone("dinov2").save_pretrained(tmp_path / "tiny")
    return {
        "data": "test_finetune_processes:faulty",
        "backbone": str(tmp_path / "tiny"),
        "output_dir": str(tmp_path / "model"),
        "num_pictures": 64,
        "validation_pictures": 13,
        "batch_size": 8,
        "lora_r": 2,
        "validate_every": 3,
        "dtype": "float32",
        "device": "cpu",
        "workers": 0,
    }


def launch(*command, count=2):
    """The command run by torchrun in so many processes of one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    kwargs = {"capture_output": True, "text": True, "timeout": 900}  # rather than wait for ever
    return subprocess.run([*torchrun, *command], env=environment, check=False, **kwargs)


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def fault_at(step, process):
    """The picture that begins the share of a process (of two) at a step of the training the options describe."""
    return int(training.picture_order(64, 64, seed=0).reshape(8, 2, 4)[step, process, 0])


def test_two_processes_give_the_results_of_one(options, tmp_path):
    done = launch("-m", "attribution.finetune", *arguments(options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "model")]
    assert len(re.findall(r"step 3 .* validation", done.stderr)) == 1  # main alone speaks
    record = json.loads((tmp_path / "model" / "training_config.json").read_text())
    assert (record["num_processes"], record["steps"], record["pictures"]) == (2, 8, 64)
    assert not (tmp_path / "model" / "resume").exists()
    assert main(arguments({**options, "output_dir": str(tmp_path / "one")})) == 0
    alone = json.loads((tmp_path / "one" / "training_config.json").read_text())
    assert alone["num_processes"] == 1 and alone["best_step"] == record["best_step"]
    for name in ("adapter_model", "head"):
        two, one = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("model", "one"))
        assert two.keys() == one.keys()
        for key in one:
            np.testing.assert_allclose(two[key], one[key], rtol=0, atol=1e-5, err_msg=key)
    two, one = (
        pd.read_csv(tmp_path / name / "training_log.csv").drop(columns="elapsed_s") for name in ("model", "one")
    )
    assert one["step"].tolist() == [3, 6, 8] and one["pictures"].tolist() == [24, 48, 64]
    pd.testing.assert_frame_equal(two, one, rtol=1e-5, atol=1e-5)
    load_pretrained(tmp_path / "model")  # its golden predictions are met


def trials(settings):
    """What several trainings in one group of processes come to; run by `launch`, prints JSON in the main process."""
    folder, found = Path(settings["output_dir"]), {}

    def attempt(name, fault="", index=-1, **change):
        Faulty.fault, Faulty.index = fault, index
        output = {"output_dir": str(folder / name.split()[0])}
        try:
            finetune(FinetuneSettings(**{**settings, **output, **change}))
            found[name] = ""
        except AgreedError as error:
            found[name] = str(error)

    attempt("unreadable", "unreadable", fault_at(0, 1))
    attempt("gap", "not finite", fault_at(2, 1))
    attempt("huge", "huge", fault_at(1, 1))
    attempt("first", "unreadable", fault_at(1, 0))
    attempt("apart", data_options="apart=1")
    attempt("options", learning_rate=1e-3 * (1 + process_number()))
    attempt("few", validation_pictures=1)
    attempt("zero", num_pictures=8, batch_size=8)
    dropout = {"lora_dropout": 0.2, "save_every_min": 0.0}
    attempt("whole", **dropout)
    attempt("broken", "unreadable", fault_at(5, 1), **dropout)
    if process_number() == 0:
        shutil.copytree(folder / "broken", folder / "left")
    attempt("broken again", **dropout)
    if process_number() == 1:
        training.time = SimpleNamespace(monotonic=lambda: 50 * time.monotonic())  # its clock must not count
    attempt("budget", num_pictures=10**5, time_budget_min=0.01, validate_every=10**5)
    if process_number() == 0:
        print(json.dumps(found))
    return main([*arguments(settings), "--no-such=1"])


def test_what_ends_one_process_ends_both(options, tmp_path, capsys):
    code = f"import sys, test_finetune_processes as tests; sys.exit(tests.trials({options!r}))"
    done = launch("--no-python", sys.executable, "-c", code)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    step_5 = tmp_path / "model" / "left"
    assert found == {
        "unreadable": "process 1: picture.png: not a readable PNG file",
        "gap": "process 1: labels: row 0, brightness: expected a finite number",
        "huge": "step 1: the loss is inf; try a smaller --learning-rate",
        "first": "picture.png: not a readable PNG file",
        "apart": "process 1 differs from process 0 in labels; expected the same",
        "options": "process 1 differs from process 0 in learning_rate; expected the same",
        "few": f"data {options['data']}: 1 validation pictures for 2 processes, expected at least one for each",
        "zero": f"{tmp_path / 'model' / 'zero'}: the LoRA matrices B are all zero, expected trained adapters",
        "whole": "",
        "broken": "process 1: picture.png: not a readable PNG file",
        "broken again": "",
        "budget": "",
    }
    # the last trial was given an option that does not exist
    assert len(errors(done.stderr)) == 1 and "--no-such" in errors(done.stderr)[0]
    assert done.returncode == 1 and re.search(r"exitcode *: 2 ", done.stderr)
    # a run that broke off goes on to the same weights and rows, dropout and all, with as many processes
    assert [path.name for path in (step_5 / "resume").glob("step_*")] == ["step_000000005"]
    # accelerate's own file of random states, which this test has just had written: it holds numpy's as well
    random = [torch.load(path, weights_only=False) for path in sorted(step_5.glob("resume/step_*/random_states_*.pkl"))]
    assert len(random) == 2 and not torch.equal(*(states["torch_manual_seed"] for states in random))  # dropout differs
    whole, resumed = (tmp_path / "model" / name for name in ("whole", "broken"))
    assert weights_sha256(load_pretrained(whole)) == weights_sha256(load_pretrained(resumed))
    logs = [pd.read_csv(folder / "training_log.csv").drop(columns="elapsed_s") for folder in (whole, resumed)]
    pd.testing.assert_frame_equal(*logs)
    alone = {**options, "output_dir": str(step_5), "lora_dropout": 0.2}
    assert main(arguments(alone)) == 2
    assert "resume: holds a run with other settings (num_processes)" in capsys.readouterr().err
    # both stopped at one step, by the clock of the main process
    record = json.loads((tmp_path / "model" / "budget" / "training_config.json").read_text())
    assert record["num_processes"] == 2 and 0 < record["steps"] < 10**5 // 8 and record["elapsed_s"] >= 0.6


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_other_with_it_and_loses_nothing(options, tmp_path):
    options |= {"lora_dropout": 0.2, "save_every_min": 0}
    killing = (
        "import sys; from test_finetune_processes import Faulty; from attribution.finetune import main; "
        f"Faulty.fault, Faulty.index = 'killed', {fault_at(5, 1)}; sys.exit(main({arguments(options)!r}))"
    )
    done = launch("--no-python", sys.executable, "-c", killing)
    assert done.returncode != 0 and "SIGKILL" in done.stderr
    assert [path.name for path in (tmp_path / "model" / "resume").glob("step_*")] == ["step_000000005"]
    assert not (tmp_path / "model" / "regressor_config.json").exists()
    for folder in ("model", "whole"):
        again = launch("-m", "attribution.finetune", *arguments({**options, "output_dir": str(tmp_path / folder)}))
        assert again.returncode == 0, again.stderr
    assert weights_sha256(load_pretrained(tmp_path / "model")) == weights_sha256(load_pretrained(tmp_path / "whole"))


def test_a_batch_that_cannot_be_split_is_refused():
    settings = FinetuneSettings(data="x", output_dir="y", batch_size=8)
    for number in (1, 2, 4, 8):
        check_settings(settings, number)
    with pytest.raises(ValueError, match=r"--batch-size: 8 pictures cannot be split evenly over 3 processes"):
        check_settings(settings, 3)


def test_shares_are_all_in_order():
    for count in (1, 2, 7, 24):
        for number in (1, 2, 3, 5):
            seen = [share(SimpleNamespace(num_processes=number, process_index=k), count) for k in range(number)]
            assert [index for part in seen for index in part] == list(range(count))
            assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_one_process_exchanges_nothing():
    alone = SimpleNamespace(num_processes=1)  # has nothing to exchange with
    with pytest.raises(OSError, match="as it was"), together(alone):
        raise OSError("as it was")
    assert processes.from_main(alone, [1.5, True]) == [1.5, 1.0]
    assert processes.joined(alone, np.arange(3)).tolist() == [0, 1, 2]
    processes.require_same(alone, {"a": 1})


def test_an_error_of_one_process_alone_names_it(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    tell(OSError("a\n  b"))
    assert capsys.readouterr().err == "error: process 1: a b\n"


def test_every_process_that_was_launched_must_be_seen(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(AgreedError, match="3 processes for 2 GPUs: expected at most one for each"):
        processes.start(False, "no")
    monkeypatch.setenv("WORLD_SIZE", "3")
    unseeing = SimpleNamespace(num_processes=1)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: unseeing)
    with pytest.raises(AgreedError, match="3 processes were launched, but accelerate sees 1"):
        processes.start(True, "no")
    unseeing.num_processes, unseeing.distributed_type = 3, processes.DistributedType.FSDP
    with pytest.raises(AgreedError, match="accelerate is set up for FSDP, expected whole copies"):
        processes.start(True, "no")
