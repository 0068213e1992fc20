"""`edge-attn demo`, with the toy model instead of the embedded one."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge_attn.bundle.bundle import Bundle
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
    assert "parity holds" in output
    assert "every good cat calls a child\n  -> chaque chat bon appelle un enfant  (-0." in output
    root = ElementTree.fromstring((out / "alignments.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for token in TOKENS:
        assert token in texts


@pytest.mark.usefixtures("without_torch")
def test_without_torch_the_embedded_bundle_is_used(edge_attn_cli, tmp_path, toy_bundle):
    out = tmp_path / "a" / "demo"
    output = edge_attn_cli("demo", "--out", out, "--threads", 1).stdout
    assert output.startswith(
        f"nothing_of_this_name is not installed, so nothing is exported; copying the embedded bundle {toy_bundle} to "
        f"{out / 'en-fr'}\n"
    )
    check(output, out)
    assert sorted(path.name for path in out.iterdir()) == ["alignments.svg", "en-fr"]
    assert output.endswith(f'\nnext: edge-attn translate {out / "en-fr"} "I am cold."\n')
    copied, embedded = Bundle.open(out / "en-fr"), Bundle.open(toy_bundle)
    assert (copied.manifest, copied.files()) == (embedded.manifest, embedded.files())
    edge_attn_cli("demo", "--out", out, "--threads", 1)  # replaces the bundle


@pytest.mark.usefixtures("needs_torch")
def test_without_checkpoint_the_embedded_bundle_is_used(edge_attn_cli, monkeypatch, tmp_path, toy_bundle):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "absent")
    output = edge_attn_cli("demo", "--out", tmp_path / "demo").stdout
    assert output.startswith(
        f"the wheel does not contain the checkpoint, so nothing is exported; copying the embedded bundle {toy_bundle} "
        f"to {tmp_path / 'demo' / 'en-fr'}\n"
    )
    check(output, tmp_path / "demo")


@pytest.mark.usefixtures("needs_torch")
def test_with_torch_the_checkpoint_is_exported(edge_attn_cli, tmp_path):
    output = edge_attn_cli("demo", "--out", tmp_path).stdout
    assert f"exporting {demo.CHECKPOINT} to {tmp_path / 'en-fr'}" in output
    check(output, tmp_path)
    assert Bundle.open(tmp_path / "en-fr").manifest.max_source == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alignments.svg", "en-fr"]


@pytest.mark.usefixtures("needs_torch")
def test_folder_that_is_not_a_bundle_is_not_replaced(edge_attn_cli, tmp_path):
    (tmp_path / "en-fr").mkdir()
    (tmp_path / "en-fr" / "thesis.tex").touch()
    edge_attn_cli("demo", "--out", tmp_path, code=4, error="exists and is not a bundle")
    assert (tmp_path / "en-fr" / "thesis.tex").exists()


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
