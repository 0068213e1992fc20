"""`edge-attn translate`: every option of the search reaches it, and prefixes come from a file, line by line."""

from __future__ import annotations

import json
import os

import pytest
from paths import KINDS_FOLDER

from edge_attn.runtimes.commands import translate as translate_file
from edge_attn.text.corpus import LONGEST_LINE


@pytest.fixture
def prefixes(tmp_path):
    path = tmp_path / "prefixes"
    path.write_text("le\n\nle petit roi\n")
    return path


def test_a_prefix_file_has_a_line_for_each_line(translate, prefixes, monkeypatch):
    said = "le chat\nun chien\n"
    lines = translate(b"a cat\na dog\nthe king\n", "--prefix", prefixes).stdout
    assert lines.startswith(said)
    assert lines.removeprefix(said).startswith("le petit roi")
    monkeypatch.setattr(translate_file, "WINDOW", 1)
    assert translate(b"a cat\na dog\nthe king\n", "--prefix", prefixes).stdout == lines


@pytest.mark.parametrize("window", [1, 100])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"le\nun\n", "line 3 has no prefix"),
        (b"le\nun\nle\nla\n", "has more lines than the input, which has 3"),
        (b"le\nun\nder Hund\n", "prefixes: line 3: the target vocabulary has no 'der'"),
        (b"le\nun\n" + b"le " * 11, "prefixes: line 3: 11 tokens, and max_length leaves room for 10"),
        (b"le\nun\n\xff\n", "prefixes: line 3: not UTF-8 at byte 1"),
        (b"le\nun\n" + b"le " * LONGEST_LINE, f"prefixes: line 3: more than {LONGEST_LINE} bytes"),
    ],
)
def test_a_prefix_that_is_none_is_named_and_the_lines_before_it_are_answered(
    translate, prefixes, monkeypatch, content, said, window
):
    monkeypatch.setattr(translate_file, "WINDOW", window)
    prefixes.write_bytes(content)
    options = ["--prefix", prefixes, "--max-length", 10]
    found = translate(b"a cat\na dog\nthe king\n", *options, code=4, error=said).stdout
    assert found.startswith("le chat\nun chien\n")
    assert found.count("\n") == (3 if "more lines" in said else 2)


def test_a_prefix_file_that_cannot_be_read_is_named(translate, tmp_path):
    translate(b"a cat\n", "--prefix", tmp_path / "absent", code=4, error="absent cannot be read: No such file")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero here")  # noqa: PTH110
def test_a_prefix_without_end_is_refused(translate):
    said = f"/dev/zero: line 1: more than {LONGEST_LINE} bytes"
    translate(b"a cat\n", "--prefix", "/dev/zero", code=4, error=said)


def test_alternatives_have_a_line_each(translate, prefixes):
    lines = translate(b"a cat\n\nthe king\n", "--prefix", prefixes, "--alternatives", 3, "--beam", 2).stdout.split("\n")
    assert len(lines) == 3 * 3 + 1
    assert lines[0] == "le chat"
    assert len(set(lines[:3])) == 3
    assert all(line.startswith("le") for line in lines[:3])
    assert lines[3:6] == ["", "", ""]


def test_samples_need_no_beam_and_are_those_of_the_seed(translate):
    options = ["--sample", "--temperature", 3, "--n-best", 4, "--top-k", 20, "--top-p", 0.95, "--seed"]
    first = translate(b"a cat\nthe king\n", *options, 1).stdout
    assert first.count("\n") == 8
    assert translate(b"a cat\nthe king\n", *options, 1).stdout == first
    assert translate(b"a cat\nthe king\n", *options, 2).stdout != first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--min-length", 6], lambda tokens: len(tokens) >= 6),
        (["--suppress", "chat", "--suppress", "un"], lambda tokens: not {"chat", "un"} & set(tokens)),
        (["--min-length", 6, "--no-repeat-ngram", 1], lambda tokens: len(tokens) == len(set(tokens)) >= 6),
        (["--min-length", 6, "--repetition-penalty", 9], lambda tokens: len(set(tokens)) >= 4),
    ],
)
def test_an_option_reaches_the_search(translate, options, expected):
    content = json.loads(translate(b"a cat\n", "--format", "jsonl", *options).stdout)
    assert expected(content["translations"][0]["tokens"]), content


def test_penalties_reach_the_search(translate):
    lines = []
    for options in (
        ["--length-penalty-kind", "none"],
        ["--length-penalty-kind", "wu", "--length-penalty", 2],
        ["--length-penalty-kind", "none", "--coverage-penalty", 0.5],
    ):
        found = json.loads(translate(b"a cat\n", "--format", "jsonl", *options).stdout)["translations"][0]
        lines.append(found["score"] / found["log_prob"])
    assert lines[0] == 1.0
    assert lines[1] == pytest.approx(1 / (8 / 6) ** 2)
    assert lines[2] > 1.0


def test_groups_give_other_sentences(translate):
    options = ["--beam", 4, "--n-best", 4]
    plain = translate(b"the old king\n", *options).stdout
    assert translate(b"the old king\n", *options, "--groups", 4, "--diversity", 5).stdout != plain


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sample", "--beam", 4], "sampling draws one token at a time: it needs a beam of 1, got beam 4"),
        (["--seed", 3], "seed is for sampling, and sample is off"),
        (["--groups", 2], "groups above 1 and a diversity above 0 need each other"),
        (["--suppress", "Hund"], "'Hund' cannot be suppressed: it is no entry of the target vocabulary"),
        (["--alternatives", 2, "--n-best", 2], "alternatives are searched for one by one"),
        (["--sample", "--groups", 2], "sampling has no groups: leave out groups and diversity"),
        (["--sample", "--n-best", 8000], "at most 1024 hypotheses of a sentence live at a time, got 8000"),
        (["--alternatives", 300], "at most 1024 hypotheses of a sentence live at a time, got 1200"),
        (["--length-penalty-kind", "none", "--length-penalty", 2], "none divides by 1: it takes no length_penalty"),
        (["--min-length", 9, "--max-length", 8], "min_length must be at most max_length (8), got 9"),
    ],
)
def test_options_that_make_no_sense_are_refused(translate, options, said):
    assert translate(b"a cat\n", *options, code=2, error=said).stdout == ""


@pytest.mark.parametrize("options", [["--beam", 40], ["--suppress", "</s>"]])
def test_what_the_bundle_cannot_serve_is_refused_without_a_line(translate, tmp_path, options):
    translate(b"", "--output", tmp_path / "out", *options, code=2)
    assert not (tmp_path / "out").exists()


def test_a_sample_has_any_limit(translate):
    assert translate(b"a cat\n", "--sample", "--max-length", 10**12).stdout == "un chat\n"


@pytest.mark.parametrize("options", [["--sample", "--temperature", 3], ["--min-length", 100, "--no-repeat-ngram", 2]])
def test_padding_and_the_beginning_are_no_words(translate, options):
    found = translate(b"a cat\n", "--n-best", 5, *options, *(["--seed", 2] if "--sample" in options else ["--beam", 5]))
    assert "<pad>" not in found.stdout
    assert "<s>" not in found.stdout
    assert "chat" in found.stdout


def test_the_help_says_what_counts(edge_attn_cli):
    said = " ".join(edge_attn_cli("translate", "--help").stdout.split())
    for words in (
        "Tokens, at most, the end symbol counted.",
        "what two of them find comes once, so fewer than --n-best may come.",
        "begins with, whole words, a line each.",
        "for equal lines too.",
        "alpha: the power that --length-penalty-kind tells of.",
    ):
        assert words in said


def test_translations_and_alignments_need_a_file_each(translate, tmp_path):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to("there")
    for one, other in (("out", "out"), ("out", "../" + tmp_path.name + "/out"), ("link", "there")):
        files = ["--output", tmp_path / one, "--alignments", tmp_path / other]
        translate(b"a cat\n", *files, code=2, error="cannot hold both the translations and the alignments")
    assert (tmp_path / "there").read_text() == "before"
    translate(b"a cat\n", "--output", os.devnull, "--alignments", os.devnull)


def test_a_model_without_attention_writes_no_alignments(edge_attn_cli, tmp_path):
    bundle = KINDS_FOLDER / "none-gru.zip"
    said = "an alignment needs attention weights, and this model has no attention"
    edge_attn_cli("translate", bundle, "--alignments", tmp_path / "al", "--input", os.devnull, code=2, error=said)
    assert list(tmp_path.iterdir()) == []
