"""What code a score depends on: all that a pass runs, by what it means, and nothing else."""

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from analysis import definitions
from analysis.checks.trials import check_passes
from analysis.definitions import lines_of, module_of_file
from analysis.explain import all_passes
from analysis.lent_contexts import with_companions
from analysis.mean_contexts import reference_context
from analysis.models import OpenedModel, make_batch
from analysis.out_of_memory import BatchSize
from analysis.own_code import code_sha256, definitions_behind
from analysis.passes import chosen_methods
from analysis.pictures import open_source
from analysis.piecework import Work, runs
from analysis.settings import CompareSettings
from analysis.sharding import Processes
from attribution.ablation import zero_ablation
from attribution.backbone import tiny_backbone
from attribution.methods import METHODS, PIXEL_METHODS
from attribution.rollout import chefer
from attribution.vit import RegressorConfig, ViTRegressor
from data_synth import TARGET_NAMES, TARGET_UNITS

TWO_MODULES = {
    "attribution/upper.py": """
from attribution.lower import SCALE, Scaler, helper

def unrelated(x):
    return x

def root(x):
    def inner(y):
        return helper(y) * SCALE
    return inner(x) + Scaler(3).times(x)
""",
    "attribution/lower.py": """
import math

SCALE = 2

def helper(x):
    return x + math.pi

class Scaler:
    def __init__(self, by):
        self.by = by

    def times(self, x):
        return x * self.by
""",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write source files, and the digest of what ``root`` in the first of them means."""
    monkeypatch.setattr(definitions, "ROOT", tmp_path)
    made = []

    def digest(files):
        root = tmp_path / str(len(made))
        made.append(root)
        monkeypatch.setattr(definitions, "ROOT", root)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for cached in (definitions.described, definitions._nodes, definitions.parsed_module,
                       definitions._modules_by_file, definitions.files_by_module):  # fmt: skip
            cached.cache_clear()
        return code_sha256(definitions.Definition("attribution.upper", "root"))

    yield digest
    for cached in (definitions.described, definitions._nodes, definitions.parsed_module,
                   definitions._modules_by_file, definitions.files_by_module):  # fmt: skip
        cached.cache_clear()


def changed(old, new, file="attribution/lower.py"):
    assert old in TWO_MODULES[file]
    return TWO_MODULES | {file: TWO_MODULES[file].replace(old, new)}


def test_what_means_the_same_has_the_same_digest(project):
    before = project(TWO_MODULES)
    assert project(TWO_MODULES) == before
    assert project(changed("SCALE = 2", "# twice\n\n\nSCALE = 2  # so\n")) == before
    assert project(changed("    return x + math.pi", '    """Adds."""\n    return (x + math.pi)')) == before
    assert project(changed("    return x\n", "    return -x\n", "attribution/upper.py")) == before
    # A definition that moves, by itself or with all its module, means what it meant.
    moved = {
        "attribution/upper.py": TWO_MODULES["attribution/upper.py"].replace(
            "from attribution.lower import SCALE, Scaler, helper",
            "from attribution.room.other import Scaler\nfrom attribution.room.other import helper, SCALE",
        ),
        "attribution/room/other.py": TWO_MODULES["attribution/lower.py"],
    }
    assert project(moved) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),
        ("x + math.pi", "x - math.pi"),
        ("return x * self.by", "return x / self.by"),
        ("self.by = by", "self.by = by + 1"),
        ("import math", "import cmath as math"),  # seen by the versions of libraries, never by this digest
    ],
)
def test_what_means_another_thing_has_another_digest(project, old, new):
    same = project(TWO_MODULES) == project(changed(old, new))
    assert same == ("import" in old)


def test_a_name_that_leads_elsewhere_is_another_thing(project):
    other = {
        "attribution/upper.py": TWO_MODULES["attribution/upper.py"].replace(
            "from attribution.lower import SCALE, Scaler, helper",
            "from attribution.lower import SCALE, Scaler\nfrom attribution.another import helper",
        ),
        "attribution/lower.py": TWO_MODULES["attribution/lower.py"],
        "attribution/another.py": "def helper(x):\n    return x\n",
    }
    assert project(other) != project(TWO_MODULES)


def test_functions_that_a_function_holds_are_followed():
    def holding(function):
        return lambda batch: function(batch)

    assert definitions_behind(holding(zero_ablation)) == definitions_behind(zero_ablation)
    assert code_sha256(holding(zero_ablation)) != code_sha256(holding(chefer))
    assert definitions_behind(len, np.mean, torch.nn.Linear, None, 3) == frozenset()


def test_code_behind_a_truth():
    found = {one.module for one in definitions_behind(zero_ablation)}
    assert {"attribution.sweep", "attribution.blocks", "attribution.vit", "attribution.prefix"} <= found
    assert not found & {"attribution.gates", "attribution.finetune", "attribution.methods", "attribution.head_methods"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two drawn pictures and a small random model with adapters, before anything is computed."""
    backbone = tiny_backbone("dinov2", 0, image_size=56, patch_size=14, num_layers=3, num_heads=3, hidden_size=12)
    backbone = get_peft_model(backbone, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    config = RegressorConfig(TARGET_NAMES, TARGET_UNITS, (22.0, 50.0, 50.0), (13.0, 29.0, 29.0), image_size=56)
    model = ViTRegressor(backbone, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    opened = OpenedModel(model.eval().requires_grad_(False), "tiny", "0", is_control=True)
    source = open_source("default", 2, seed=0, image_size=56, patch_size=14, target_names=TARGET_NAMES)
    # Pictures and reference pictures count by their pixels, not by the code that draws them (that of twins does).
    pictures = source.draw([0])
    references = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3), dtype=np.uint8)
    source = replace(
        source,
        count=1,
        draw=lambda rows: pictures,
        reference=lambda rows: references[list(rows)],
        num_references=len(references),
    )
    folder = tmp_path_factory.mktemp("scores")
    return Work(opened, source, folder, {}, {}, BatchSize(2), Processes(), lambda name, done: None)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.mean_contexts.cache_folder", lambda: tmp_path_factory.mktemp("cache"))
        yield


def executed(compute):
    """Code of this project that runs: (module, first line, qualified name)."""
    found = set()

    def seen(frame, event, _):
        if event == "call":
            code = frame.f_code
            module = module_of_file(code.co_filename)
            if module is not None:
                found.add((module, code.co_firstlineno, code.co_qualname))

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        compute()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def test_every_pass_depends_on_all_the_code_that_it_runs(work, own_cache):
    """The digest of a pass, made without a list, is held against what really runs when the pass does."""
    settings = CompareSettings(
        methods=("all",), truths=("all",), checks=("all",), num_pictures=2, steps=2, pixel_steps=1, permutations=1
    )
    opened, source = work.opened, work.source
    of_checks = check_passes(opened, source, settings, chosen_methods(settings.methods))
    passes = [*all_passes(opened, source, settings), *(one for found in of_checks.values() for one in found)]
    assert len(passes) > 70
    missing = {}
    for one in passes:
        named = {name for depends_on in one.depends_on.values() for name in depends_on.get("methods", {})}
        methods = [table[name] for table in (METHODS, PIXEL_METHODS) for name in named if name in table]
        functions = [(each.function, each.of_attention, each.with_extras, each.of_gradients) for each in methods]
        covered = {}
        for definition in definitions_behind(*runs(one, source, one.needs), *functions):
            covered.setdefault(definition.module, []).extend(lines_of(definition))

        def compute(one=one):
            batch = make_batch(opened, source.draw([0]))
            batch = with_companions(opened, batch, source, 0, one.needs) if one.needs else batch
            one.compute(batch, list(one.depends_on), 2)

        found = executed(compute)
        assert found
        lacking = {
            (module, name)
            for module, line, name in found
            if not any(first <= line <= last for first, last in covered.get(module, ()))
            and name != "<module>"
            and module not in ("analysis.own_code", "analysis.definitions")  # by whose digests a cache keeps its file
        }
        if lacking:
            missing[one.name] = sorted(lacking)
    assert missing == {}


def test_code_that_is_not_named_is_seen_to_run(work):
    """The comparison above would fail: what a sweep runs is not behind the batch alone."""
    batch = make_batch(work.opened, work.source.draw([0]))
    found = {module for module, _, _ in executed(lambda: zero_ablation(work.opened.model, batch))}
    assert "attribution.sweep" in found
    assert "attribution.sweep" not in {one.module for one in definitions_behind(make_batch)}


def test_what_tells_code_apart_changes_no_scores_key():
    """An edit of it could change how digests are made, then all change; else it is to leave every one as it was."""
    behind = definitions_behind(reference_context)
    modules = {one.module for one in behind}
    assert modules.isdisjoint({"analysis.own_code", "analysis.definitions", "analysis.held_values"})
    assert any(one.name == "mean_context" for one in behind)
