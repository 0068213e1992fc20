"""`edge-attn demo`, with the toy model instead of the embedded one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import update_bundle, write_bundle
from edge_attn.runtimes.commands import demo

SENTENCES = ("every good cat calls a child", "the king sees this old tree")
TOKENS = {*" ".join(SENTENCES).split(), "chaque", "chat", "bon", "appelle", "un", "enfant"}


@pytest.fixture(autouse=True)
def toy(monkeypatch, toy_checkpoint, toy_bundle):
    monkeypatch.setattr(demo, "CHECKPOINT", toy_checkpoint)
    monkeypatch.setattr(demo, "BUNDLE", toy_bundle)
    monkeypatch.setattr(demo, "SENTENCES", SENTENCES)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(demo, "EXPORT_PACKAGES", ("nothing_of_this_name", *demo.EXPORT_PACKAGES))


def check(output: str, out: Path) -> None:
    """Check the four stages, the bundle that is left, the picture, and the next command."""
    lines = output.splitlines()
    assert lines[0] == "translation: GRU decoder, additive attention, 10247 weights, fp32"
    stages = [line.split()[:2] for line in lines[1:] if line[0].isdigit()]
    assert [number for number, _ in stages] == ["1", "2", "3", "4"]
    assert [name for _, name in stages[1:]] == ["verify", "translate", "picture"]
    assert "67 sentences: graph holds, step holds, sentence holds, device holds" in output
    assert "every token equals PyTorch's; log-probabilities within " in output
    assert "   parity holds\n" in output
    assert "every good cat calls a child  chaque chat bon appelle un enfant\n" in output
    assert lines[-1] == f'Next: edge-attn translate {out / "en-fr"} "I am cold."'
    assert Bundle.open(out / "en-fr").manifest.max_source == 20
    assert sorted(path.name for path in out.iterdir()) == ["alignments.svg", "en-fr"]
    root = ElementTree.fromstring((out / "alignments.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for token in TOKENS:
        assert token in texts


@pytest.mark.usefixtures("without_torch")
def test_without_torch_the_embedded_bundle_is_copied(edge_attn_cli, tmp_path, toy_bundle):
    out = tmp_path / "a" / "demo"
    output = edge_attn_cli("demo", "--out", out, "--threads", 1).stdout
    assert re.search(r"\n1 copy +\d+ s   2 graphs, 0\.\d MB -> ", output)
    assert f" MB -> {out / 'en-fr'}\n" in output
    assert "nothing_of_this_name is not installed, so nothing is exported" in output
    check(output, out)
    copied, embedded = Bundle.open(out / "en-fr"), Bundle.open(toy_bundle)
    assert copied.files() == embedded.files()
    assert copied.manifest == embedded.manifest


@pytest.mark.usefixtures("needs_torch")
def test_without_checkpoint_the_embedded_bundle_is_copied(edge_attn_cli, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "absent")
    output = edge_attn_cli("demo", "--out", tmp_path / "demo").stdout
    assert "the wheel does not contain the checkpoint, so nothing is exported" in output
    check(output, tmp_path / "demo")


@pytest.mark.usefixtures("needs_torch")
def test_with_torch_the_checkpoint_is_exported(edge_attn_cli, tmp_path):
    output = edge_attn_cli("demo", "--out", tmp_path).stdout
    assert "\n1 export " in output
    assert f" -> {tmp_path / 'en-fr'}\n" in output
    check(output, tmp_path)


@pytest.mark.usefixtures("without_torch")
def test_second_run_uses_the_bundle_with_what_was_added(edge_attn_cli, tmp_path):
    edge_attn_cli("demo", "--out", tmp_path)
    update_bundle(tmp_path / "en-fr", lambda now: (now.manifest, {**now.files(), "MODEL_CARD.md": b"mine"}))
    output = edge_attn_cli("demo", "--out", tmp_path).stdout
    assert "of an earlier demo is used as it is; remove it to export again\n" in output
    check(output, tmp_path)
    assert Bundle.open(tmp_path / "en-fr").read("MODEL_CARD.md") == b"mine"


@pytest.mark.parametrize("content", ["thesis", "other model", "file"])
def test_what_is_no_bundle_of_the_demo_is_not_replaced(edge_attn_cli, tmp_path, toy_bundle, content):
    path = tmp_path / "en-fr"
    if content == "file":
        path.write_text("mine")
    elif content == "thesis":
        path.mkdir()
        (path / "thesis.tex").touch()
    else:
        opened = Bundle.open(toy_bundle)
        provenance = {**opened.manifest.provenance, "checkpoint_sha256": "0" * 64}
        write_bundle(path, dataclasses.replace(opened.manifest, provenance=provenance), opened.files())
    before = sorted(path.rglob("*"))
    edge_attn_cli("demo", "--out", tmp_path, code=4)
    edge_attn_cli("demo", "--out", tmp_path, code=4)
    assert sorted(path.rglob("*")) == before
    assert path.exists()


@pytest.mark.usefixtures("without_torch")
def test_failed_parity_is_the_exit_code(edge_attn_cli, monkeypatch, tmp_path):
    def wrong(_, value):
        return value * value.dtype.type(1.01) if value.dtype.kind == "f" else value

    monkeypatch.setattr("edge_attn.runtimes.ort.cpu.OrtCpu.numpy", wrong)
    assert "parity fails" in edge_attn_cli("demo", "--out", tmp_path, code=1).stdout


@pytest.mark.usefixtures("without_torch")
def test_invalid_options_are_one_line(edge_attn_cli, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    edge_attn_cli("demo", "--out", tmp_path / "file", code=4, error="file cannot be written: File exists")
    edge_attn_cli(
        "demo", "--out", tmp_path, "--runtime", "tvm", code=2, error="'tvm' is not one of ort-cpu, ort-cuda, "
    )
    for option, value in (("--runtime", "trt"), ("--precision", "fp16")):
        edge_attn_cli("demo", "--out", tmp_path / "new", option, value, code=2, error="demo runs on ort-cpu")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(demo, "BUNDLE", tmp_path / "absent.zip")
    edge_attn_cli("demo", "--out", tmp_path, code=4, error="absent.zip is not a bundle")
