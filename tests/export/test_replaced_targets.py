"""`export --force` names the optimized graphs that it drops."""

from __future__ import annotations

from bundle_files import FILES, make_manifest

from edge_attn.bundle.manifest import Target
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import ExportError


def test_force_names_the_targets_that_it_drops(edge_attn_cli, toy_checkpoint, tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise ExportError("stopped by this test")

    monkeypatch.setattr("edge_attn.export.pipeline.export", refuse)
    target = Target("trt", "fp16", make_manifest().graphs)
    for name, targets in (("with", {"trt-fp16": target}), ("without", {})):
        write_bundle(tmp_path / name, make_manifest(targets=targets), FILES)
        command = ["export", toy_checkpoint, "--out", tmp_path / name, "--force"]
        lines = edge_attn_cli(*command, code=4).stderr.splitlines()
        assert lines[-1] == "edge-attn: stopped by this test"
        assert [line for line in lines if "drops the optimized graphs" in line] == lines[:-1]
        assert len(lines) == (2 if targets else 1)
