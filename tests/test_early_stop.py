"""Ctrl-C before a command has begun, while it imports: one line and code 3; nothing changes for other programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("analysis.compare", "attribution.finetune", "data_synth", "analysis.claims", "analysis.bench")
SILENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start(words, cwd=ROOT, **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=cwd, env=SILENT | environment, **pipes)


@pytest.fixture
def slow_import(tmp_path):
    """An environment in which numpy, which every command imports, says that it is being imported and never ends."""
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'importing')!r}).touch(); time.sleep(600)"
    (tmp_path / "numpy.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}, tmp_path / "importing"


def interrupted(process, until):
    """What it says and how it ends, by a signal when the file is there."""
    while not until.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    return process.returncode, out, error


@pytest.mark.parametrize("command", COMMANDS)
def test_while_libraries_are_imported(slow_import, command):
    environment, importing = slow_import
    assert interrupted(start(["-m", command], **environment), importing) == (3, "", "stopped before it began\n")


def test_of_several_processes_the_main_one_speaks(slow_import):
    environment, importing = slow_import
    found = interrupted(start(["-m", "attribution.finetune"], RANK="1", **environment), importing)
    assert found == (3, "", "")


def test_other_programs_are_left_alone(slow_import):
    """Their signals and hooks are what they were; a signal that the caller has ignored stays so."""
    code = (
        "import signal, sys; hook = sys.excepthook; sys.argv[0] = {argv!r}\n"
        "import attribution\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and sys.excepthook is hook"
    )
    for argv in ("-c", "-m"):
        done = start(["-c", code.format(argv=argv)])
        assert done.communicate() == ("", "") and done.returncode == 0
    environment, importing = slow_import
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(["-m", "analysis.compare"], **environment)
    finally:
        signal.signal(signal.SIGINT, before)
    while not importing.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("taken", [True, False])
def test_from_main_on_it_is_the_interrupt_that_it_was(tmp_path, taken):
    """A command of a package of that name: its `main` takes Ctrl-C, or does not; what it opened is closed."""
    package, running = tmp_path / "analysis", tmp_path / "running"
    package.mkdir()
    (package / "__init__.py").write_text("import early_stop")
    (tmp_path / "early_stop.py").write_bytes((ROOT / "attribution" / "early_stop.py").read_bytes())
    error = "KeyboardInterrupt" if taken else "ValueError"
    (package / "slow.py").write_text(
        "import pathlib, sys, time\n"
        "def wait():\n"
        "    try:\n"
        f"        pathlib.Path({str(running)!r}).touch(); time.sleep(600)\n"
        "    finally:\n"
        "        print('closed')\n"
        "def main():\n"
        "    try:\n"
        "        wait()\n"
        f"    except {error}:\n"
        "        print('taken')\n"
        "        return 3\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    found = interrupted(start(["-m", "analysis.slow"], tmp_path, PYTHONPATH=str(tmp_path)), running)
    assert found == ((3, "closed\ntaken\n", "") if taken else (3, "closed\n", "stopped\n"))


def test_both_packages_have_the_same_module():
    texts = {(ROOT / name / "early_stop.py").read_text() for name in ("attribution", "data_synth")}
    assert len(texts) == 1
