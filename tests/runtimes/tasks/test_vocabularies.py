"""Tests that a bundle whose vocabularies do not fit its graphs is refused when it is opened, by each command."""

from __future__ import annotations

import json

import pytest
from verify_reports import planted

from edge_attn.bundle.bundle import Bundle


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("change", ["fewer", "more"])
def test_vocabulary_of_another_size_is_refused(toy_bundle, tmp_path, edge_attn_cli, side, change):
    def rewrite(files):
        entries = json.loads(files[f"text/{side}.json"])
        files[f"text/{side}.json"] = json.dumps(entries[:-1] if change == "fewer" else [*entries, "ibex"]).encode()

    opened = Bundle.open(toy_bundle)
    size = len(json.loads(opened.read(f"text/{side}.json")))
    other = size - 1 if change == "fewer" else size + 1
    path = planted(opened, tmp_path / "other.zip", rewrite)
    line = tmp_path / "line.txt"
    line.write_text("a cat sees a dog\tun chat voit un chien\n")
    error = f"the {side} vocabulary has {other} entries, the graphs have {size}"
    edge_attn_cli("translate", path, "a cat sees a dog", code=4, error=error)
    edge_attn_cli("score", path, line, code=4, error=error)
    assert error in edge_attn_cli("verify", path, code=4).stderr
