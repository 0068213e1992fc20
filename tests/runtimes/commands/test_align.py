"""Alignments of given translations: those of the table, and those that `translate` tells of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE, KINDS_FOLDER
from table_model import KNOWN, TableModel, table, translator

import edge_attn
from edge_attn.runtimes.commands import score

READY = EMBEDDED_BUNDLE
KINDS = sorted(KINDS_FOLDER.glob("*.zip"))
ATTENDS = [0, 2, 1, 0, 0, 3, 0]
"""After <unk> to the place 2, after <s> to 1, after a to 0, after b to 3."""


@pytest.mark.parametrize(
    ("source", "target", "pharaoh"),
    [
        ("a b c", "a b", "1-0 0-1"),
        ("a b c", "b zebra a", "1-0 0-1 2-2"),  # after b: the end symbol, and next to it the beginning
        ("a b c", "", ""),
        ("", "a b", ""),
    ],
)
def test_a_target_attends_where_the_table_says(source, target, pharaoh):
    [found] = translator(TableModel(table(KNOWN), ATTENDS)).score([(source, target)], alignments=True)
    assert found.pharaoh() == pharaoh
    assert found.alignment.shape == (len(target.split()) + 1, len(source.split()) + 1)
    np.testing.assert_allclose(found.alignment.sum(1), 1.0)


def test_alignments_are_made_where_asked_for():
    [found] = translator(TableModel(table(KNOWN), ATTENDS)).score([("a b", "a b")])
    assert found.alignment is None
    assert found.pharaoh() == ""


@pytest.fixture
def run(edge_attn_cli, toy_bundle, tmp_path):
    def run(lines: bytes, *options: object, bundle: Path = toy_bundle, **expected: object):
        (tmp_path / "pairs.tsv").write_bytes(lines)
        return edge_attn_cli("align", bundle, tmp_path / "pairs.tsv", *options, **expected)

    return run


@pytest.mark.parametrize(
    "bundle", [kind for kind in KINDS if not kind.stem.startswith("none")] + [READY], ids=lambda path: path.stem
)
@pytest.mark.parametrize("beam", [1, 4])
def test_the_models_own_translation_is_aligned_as_translate_tells(
    run, edge_attn_cli, toy_pairs, tmp_path, bundle, beam
):
    lines = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    sources = [line for line in lines if len(line.split()) < 8][:25]
    (tmp_path / "sources").write_text("".join(f"{line}\n" for line in sources))
    told = ["--input", tmp_path / "sources", "--alignments", tmp_path / "told", "--beam", beam, "--format", "jsonl"]
    said = [json.loads(line) for line in edge_attn_cli("translate", bundle, *told).stdout.splitlines()]
    best = [line["translations"][0] for line in said]
    found = run("".join(f"{s}\t{b['text']}\n" for s, b in zip(sources, best, strict=True)).encode(), bundle=bundle)
    target = edge_attn.load(bundle).text.target
    expected = (tmp_path / "told").read_text().splitlines()
    # a text may split into other pieces than those that it was made of; then it is another sequence
    same = [target.pieces(target.encode(b["text"])) == b["tokens"] for b in best]
    assert sum(same) > len(sources) / 2
    rows = zip(same, expected, found.stdout.splitlines(), strict=True)
    assert all(a == b for equal, a, b in rows if equal)
    assert (found.stderr, any(expected)) == ("", True)


def test_every_line_has_its_line(run):
    found = run(b"a red cat\tun chat rouge\n\n\tun\na cat\t\nthe king\tle roi")
    assert found.stdout == "0-0 2-1 1-2\n\n\n\n0-0 1-1\n"


def test_jsonl_holds_the_weights_that_the_alignment_is_read_from(run):
    content = [
        json.loads(line)
        for line in run(b"a red cat\tun chat rouge\n\na cat\t\n", "--format", "jsonl").stdout.splitlines()
    ]
    assert [item["line"] for item in content] == [1, 3]
    assert content[0]["source_tokens"] == ["a", "red", "cat", "</s>"]
    weights = np.array(content[0]["weights"])
    assert weights.shape == (4, 4)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)
    read = " ".join(f"{i}-{j}" for j, i in enumerate(weights[:-1, :-1].argmax(1)))
    assert content[0]["alignment"] == read == "0-0 2-1 1-2"
    assert np.array(content[1]["weights"]).shape == (1, 3)


def test_any_window_aligns_the_same(run, monkeypatch, toy_pairs):
    whole = run(toy_pairs.read_bytes()).stdout
    monkeypatch.setattr(score, "WINDOW", 7)
    assert run(toy_pairs.read_bytes()).stdout == whole
    assert whole.count("\n") == 100


@pytest.mark.parametrize("kind", ["none-gru", "none-lstm"])
def test_a_model_without_attention_has_no_alignment(run, tmp_path, kind):
    bundle = next(path for path in KINDS if path.stem == kind)
    said = "align needs attention weights, and this model has no attention"
    assert run(b"a cat\tun chat\n", "--output", tmp_path / "out", bundle=bundle, code=2, error=said).stdout == ""
    assert not (tmp_path / "out").exists()
    [found] = edge_attn.load(bundle).score([("a cat", "un chat")], alignments=True)
    assert found.alignment is None


def test_a_source_that_was_cut_is_told(run):
    found = run(b"a cat and " * 20 + b"\tun chat\n")
    places = [tuple(map(int, link.split("-"))) for link in found.stdout.split()]
    assert [j for _, j in places] == [0, 1]
    assert all(i < 19 for i, _ in places)  # 20 tokens were read, the last of them is the end symbol
    assert found.stderr == "warning: line 1 has more than 20 source tokens; only the first were read\n"


@pytest.mark.parametrize("line", [b"a dog\n", b"a\tb\tc\n", b"\xff\tun\n", b"a\0\tun\n"])
def test_a_line_that_is_no_pair_is_named_and_those_before_it_are_answered(run, tmp_path, line):
    lines = b"a cat\tun chat\n" + line
    assert run(lines, code=4, error="pairs.tsv, line 2: ").stdout == "0-0 1-1\n"
    run(lines, "--output", tmp_path / "out", code=4, error="line 2: ")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


@pytest.mark.usefixtures("needs_torch")
def test_a_checkpoint_aligns_as_its_bundle(run, toy_checkpoint, toy_pairs):
    data = b"\n".join(toy_pairs.read_bytes().split(b"\n")[:20])
    assert run(data, bundle=toy_checkpoint).stdout == run(data).stdout
