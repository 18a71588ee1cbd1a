"""Which modules a score depends on, and that nothing else changes its digest."""

import pytest

from analysis import own_code
from analysis.own_code import behind, code_sha256


def test_modules_behind_modules():
    found = behind(frozenset({"attribution.ablation", "analysis.companions"}))
    assert {"attribution.sweep", "attribution.blocks", "attribution.vit", "attribution.batch"} <= found
    assert not found & {"attribution.gates", "attribution.finetune", "attribution.methods", "analysis.pictures"}
    # A table of methods is not followed: a method that joins it changes no other.
    methods = behind(frozenset({"attribution.methods"}))
    assert "attribution.heads" in methods and not methods & {*own_code.TABLES, "attribution.gates"}
    with pytest.raises(ValueError, match="expected a module with a source file"):
        behind(frozenset({"attribution.nowhere"}))


def test_a_digest_changes_with_what_is_behind_it_alone(monkeypatch):
    def digests():
        return code_sha256(["attribution.ablation"]), code_sha256(["attribution.rollout"])

    read, before = own_code._source, digests()
    assert before == digests() and before[0] != before[1]
    changed = {"attribution.blocks": b"# another line"}
    monkeypatch.setattr(own_code, "_source", lambda name: read(name) + changed.get(name, b""))
    after = digests()
    assert after[0] != before[0] and after[1] == before[1]
