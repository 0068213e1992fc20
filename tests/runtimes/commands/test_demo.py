"""`edge-attn demo`: the whole road, here on the toy model in the place of the embedded one."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.runtimes.commands import demo

SENTENCES = ("every good cat calls a child", "the king sees this old tree")
TOKENS = {*" ".join(SENTENCES).split(), "chaque", "chat", "bon", "appelle", "un", "enfant"}


@pytest.fixture(autouse=True)
def toy(monkeypatch, toy_checkpoint, toy_bundle):
    monkeypatch.setattr(demo, "CHECKPOINT", toy_checkpoint)
    monkeypatch.setattr(demo, "READY", toy_bundle)
    monkeypatch.setattr(demo, "SENTENCES", SENTENCES)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(demo, "NEEDED", ("nothing_of_this_name", *demo.NEEDED))


def check(said: str, out) -> None:
    assert "parity holds" in said
    assert "every good cat calls a child\n  -> chaque chat bon appelle un enfant  (-0." in said
    root = ElementTree.fromstring((out / "alignments.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for token in TOKENS:
        assert token in texts


@pytest.mark.usefixtures("without_torch")
def test_without_torch_the_ready_bundle_is_verified_and_used(edge_attn_cli, tmp_path, toy_bundle):
    out = tmp_path / "a" / "demo"
    said = edge_attn_cli("demo", "--out", out, "--threads", 1).stdout
    assert f"nothing_of_this_name is not installed, so nothing is exported; using the ready bundle {toy_bundle}" in said
    check(said, out)
    assert [path.name for path in out.iterdir()] == ["alignments.svg"]


@pytest.mark.usefixtures("needs_torch")
def test_without_checkpoint_the_ready_bundle_is_used(edge_attn_cli, monkeypatch, tmp_path, toy_bundle):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "absent")
    output = edge_attn_cli("demo", "--out", tmp_path / "demo").stdout
    assert output.startswith(
        f"the wheel does not contain the checkpoint, so nothing is exported; using the ready bundle {toy_bundle}\n"
    )
    check(output, tmp_path / "demo")


@pytest.mark.usefixtures("needs_torch")
def test_with_torch_the_checkpoint_is_exported_and_again_over_itself(edge_attn_cli, tmp_path):
    said = edge_attn_cli("demo", "--out", tmp_path).stdout
    assert f"exporting {demo.CHECKPOINT} to {tmp_path / 'en-fr'}" in said
    check(said, tmp_path)
    assert Bundle.open(tmp_path / "en-fr").manifest.max_source == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alignments.svg", "en-fr"]


@pytest.mark.usefixtures("needs_torch")
def test_a_folder_that_is_no_bundle_is_left_alone(edge_attn_cli, tmp_path):
    (tmp_path / "en-fr").mkdir()
    (tmp_path / "en-fr" / "thesis.tex").touch()
    edge_attn_cli("demo", "--out", tmp_path, code=4, said="exists and is not a bundle")
    assert (tmp_path / "en-fr" / "thesis.tex").exists()


@pytest.mark.usefixtures("without_torch")
def test_a_parity_that_does_not_hold_is_the_exit_code(edge_attn_cli, monkeypatch, tmp_path):
    def wrong(_, value):
        return value * value.dtype.type(1.01) if value.dtype.kind == "f" else value

    monkeypatch.setattr("edge_attn.runtimes.ort.cpu.OrtCpu.numpy", wrong)
    assert "parity fails" in edge_attn_cli("demo", "--out", tmp_path, code=1).stdout


@pytest.mark.usefixtures("without_torch")
def test_what_cannot_be_is_one_sentence(edge_attn_cli, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    edge_attn_cli("demo", "--out", tmp_path / "file", code=4, said="file cannot be written: File exists")
    edge_attn_cli("demo", "--out", tmp_path, "--runtime", "tvm", code=2, said="unknown runtime 'tvm'")
    for option, value in (("--runtime", "trt"), ("--precision", "fp16")):
        edge_attn_cli("demo", "--out", tmp_path / "new", option, value, code=2, said="demo runs what it exports")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(demo, "READY", tmp_path / "absent.zip")
    edge_attn_cli("demo", "--out", tmp_path, code=4, said="absent.zip is not a bundle")
