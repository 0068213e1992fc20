"""`edge-attn align` returns the alignments of a table model, and those of `translate` for its own output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE, KINDS_FOLDER
from table_model import PROBABILITIES, TableModel, table, translator

import edge_attn
from edge_attn.runtimes.commands import line_io

KINDS = sorted(KINDS_FOLDER.glob("*.zip"))
ATTENDS = [0, 2, 1, 0, 0, 3, 0]
"""Source position that the table model attends to after <unk> (2), <s> (1), a (0) and b (3)."""


@pytest.mark.parametrize(
    ("source", "target", "pharaoh"),
    [
        ("a b c", "a b", "1-0 0-1"),
        ("a b c", "b zebra a", "1-0 0-1 2-2"),  # after b: the end symbol has most weight, which is left out
        ("a b c", "", ""),
        ("", "a b", ""),
    ],
)
def test_alignment_is_that_of_the_table(source, target, pharaoh):
    [score] = translator(TableModel(table(PROBABILITIES), ATTENDS)).score([(source, target)], alignments=True)
    assert score.pharaoh() == pharaoh
    assert score.alignment.shape == (len(target.split()) + 1, len(source.split()) + 1)
    np.testing.assert_allclose(score.alignment.sum(1), 1.0)


def test_score_has_an_alignment_only_on_request():
    [score] = translator(TableModel(table(PROBABILITIES), ATTENDS)).score([("a b", "a b")])
    assert score.alignment is None
    assert score.pharaoh() == ""


@pytest.fixture
def run(edge_attn_cli, toy_bundle, tmp_path):
    def run(lines: bytes, *options: object, bundle: Path = toy_bundle, **expected: object):
        (tmp_path / "pairs.tsv").write_bytes(lines)
        return edge_attn_cli("align", bundle, tmp_path / "pairs.tsv", *options, **expected)

    return run


@pytest.mark.parametrize(
    "bundle",
    [*(kind for kind in KINDS if not kind.stem.startswith("none")), EMBEDDED_BUNDLE],
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("beam", [1, 4])
def test_own_translation_is_aligned_like_translate(run, edge_attn_cli, toy_pairs, tmp_path, bundle, beam):
    lines = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    sources = [line for line in lines if len(line.split()) < 8][:25]
    (tmp_path / "sources").write_text("".join(f"{line}\n" for line in sources))
    options = ["--input", tmp_path / "sources", "--alignments", tmp_path / "links", "--beam", beam, "--format", "jsonl"]
    items = [json.loads(line) for line in edge_attn_cli("translate", bundle, *options).stdout.splitlines()]
    best = [item["translations"][0] for item in items]
    result = run("".join(f"{s}\t{b['text']}\n" for s, b in zip(sources, best, strict=True)).encode(), bundle=bundle)
    target = edge_attn.load(bundle).text.target
    expected = (tmp_path / "links").read_text().splitlines()
    # tokenization of a text may differ from the tokens that were generated; then the alignments differ too
    same = [target.pieces(target.encode(b["text"])) == b["tokens"] for b in best]
    assert sum(same) > len(sources) / 2
    rows = zip(same, expected, result.stdout.splitlines(), strict=True)
    assert all(a == b for equal, a, b in rows if equal)
    assert (result.stderr, any(expected)) == ("", True)


def test_each_line_has_one_line_of_output(run):
    result = run(b"a red cat\tun chat rouge\n\n\tun\na cat\t\nthe king\tle roi")
    assert result.stdout == "0-0 2-1 1-2\n\n\n\n0-0 1-1\n"


def test_jsonl_contains_the_weights_of_the_alignment(run):
    content = [
        json.loads(line)
        for line in run(b"a red cat\tun chat rouge\n\na cat\t\n", "--format", "jsonl").stdout.splitlines()
    ]
    assert [item["line"] for item in content] == [1, 3]
    assert content[0]["source_tokens"] == ["a", "red", "cat", "</s>"]
    weights = np.array(content[0]["weights"])
    assert weights.shape == (4, 4)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)
    links = " ".join(f"{i}-{j}" for j, i in enumerate(weights[:-1, :-1].argmax(1)))
    assert content[0]["alignment"] == links == "0-0 2-1 1-2"
    assert np.array(content[1]["weights"]).shape == (1, 3)


def test_window_size_does_not_change_the_output(run, monkeypatch, toy_pairs):
    complete = run(toy_pairs.read_bytes()).stdout
    monkeypatch.setattr(line_io, "WINDOW", 7)
    assert run(toy_pairs.read_bytes()).stdout == complete
    assert complete.count("\n") == 100


@pytest.mark.parametrize("kind", ["none-gru", "none-lstm"])
def test_model_without_attention_has_no_alignment(run, tmp_path, kind):
    bundle = next(path for path in KINDS if path.stem == kind)
    error = "align needs attention weights, and this model has no attention"
    assert run(b"a cat\tun chat\n", "--output", tmp_path / "out", bundle=bundle, code=2, error=error).stdout == ""
    assert not (tmp_path / "out").exists()
    [score] = edge_attn.load(bundle).score([("a cat", "un chat")], alignments=True)
    assert score.alignment is None


def test_truncated_source_causes_a_warning(run):
    result = run(b"a cat and " * 20 + b"\tun chat\n")
    links = [tuple(map(int, link.split("-"))) for link in result.stdout.split()]
    assert [j for _, j in links] == [0, 1]
    assert all(i < 19 for i, _ in links)  # 20 tokens were read, and the last one is the end symbol
    assert result.stderr == "warning: line 1: only the first 19 of 60 source tokens were read\n"


@pytest.mark.parametrize("line", [b"a dog\n", b"a\tb\tc\n", b"\xff\tun\n", b"a\0\tun\n"])
def test_invalid_line_is_named_after_earlier_lines_are_answered(run, tmp_path, line):
    lines = b"a cat\tun chat\n" + line
    assert run(lines, code=4, error="pairs.tsv, line 2: ").stdout == "0-0 1-1\n"
    run(lines, "--output", tmp_path / "out", code=4, error="line 2: ")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_aligns_like_its_bundle(run, toy_checkpoint, toy_pairs):
    data = b"\n".join(toy_pairs.read_bytes().split(b"\n")[:20])
    assert run(data, bundle=toy_checkpoint).stdout == run(data).stdout
