"""`edge-attn translate` passes on every search option, and reads prefixes from a file line by line."""

from __future__ import annotations

import json
import os

import pytest
from paths import KINDS_FOLDER

from edge_attn.runtimes.commands import line_io
from edge_attn.text.lines import LONGEST_LINE


@pytest.fixture
def prefixes(tmp_path):
    path = tmp_path / "prefixes"
    path.write_text("le\n\nle petit roi\n")
    return path


def test_each_line_begins_with_its_prefix(translate, prefixes, monkeypatch):
    first_lines = "le chat\nun chien\n"
    lines = translate(b"a cat\na dog\nthe king\n", "--prefix", prefixes).stdout
    assert lines.startswith(first_lines)
    assert lines.removeprefix(first_lines).startswith("le petit roi")
    monkeypatch.setattr(line_io, "WINDOW", 1)
    assert translate(b"a cat\na dog\nthe king\n", "--prefix", prefixes).stdout == lines


@pytest.mark.parametrize("window", [1, 100])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"le\nun\n", "line 3 has no prefix"),
        (b"le\nun\nle\nla\n", "has more lines than the input, which has 3"),
        (b"le\nun\nder Hund\n", "prefixes, line 3: the target vocabulary has no 'der'"),
        (b"le\nun\n" + b"le " * 11, "prefixes, line 3: 11 tokens, and --max-length leaves room for 10"),
        (b"le\nun\n\xff\n", "prefixes, line 3: not UTF-8 at byte 1"),
        (b"le\nun\n" + b"le " * LONGEST_LINE, f"prefixes, line 3: more than {LONGEST_LINE} bytes"),
    ],
)
def test_invalid_prefix_is_named_after_earlier_answers(translate, prefixes, monkeypatch, content, error, window):
    monkeypatch.setattr(line_io, "WINDOW", window)
    prefixes.write_bytes(content)
    options = ["--prefix", prefixes, "--max-length", 10]
    output = translate(b"a cat\na dog\nthe king\n", *options, code=4, error=error).stdout
    assert output.startswith("le chat\nun chien\n")
    assert output.count("\n") == (3 if "more lines" in error else 2)


def test_unreadable_prefix_file_is_named(translate, tmp_path):
    translate(b"a cat\n", "--prefix", tmp_path / "absent", code=4, error="absent cannot be read: No such file")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero here")  # noqa: PTH110
def test_endless_prefix_is_rejected(translate):
    error = f"/dev/zero, line 1: more than {LONGEST_LINE} bytes"
    translate(b"a cat\n", "--prefix", "/dev/zero", code=4, error=error)


def test_alternatives_have_one_line_each(translate, prefixes):
    lines = translate(b"a cat\n\nthe king\n", "--prefix", prefixes, "--alternatives", 3, "--beam", 2).stdout.split("\n")
    assert len(lines) == 3 * 3 + 1
    assert lines[0] == "le chat"
    assert len(set(lines[:3])) == 3
    assert all(line.startswith("le") for line in lines[:3])
    assert lines[3:6] == ["", "", ""]


def test_samples_depend_on_the_seed(translate):
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
def test_option_reaches_the_search(translate, options, expected):
    content = json.loads(translate(b"a cat\n", "--format", "jsonl", *options).stdout)
    assert expected(content["translations"][0]["tokens"]), content


def test_penalties_reach_the_search(translate):
    ratios = []
    for options in (
        ["--length-penalty-kind", "none"],
        ["--length-penalty-kind", "wu", "--length-penalty", 2],
        ["--length-penalty-kind", "none", "--coverage-penalty", 0.5],
    ):
        [hypothesis] = json.loads(translate(b"a cat\n", "--format", "jsonl", *options).stdout)["translations"]
        ratios.append(hypothesis["score"] / hypothesis["log_prob"])
    assert ratios[0] == 1.0
    assert ratios[1] == pytest.approx(1 / (8 / 6) ** 2)
    assert ratios[2] > 1.0


def test_groups_change_the_translations(translate):
    options = ["--beam", 4, "--n-best", 4]
    plain = translate(b"the old king\n", *options).stdout
    assert translate(b"the old king\n", *options, "--groups", 4, "--diversity", 5).stdout != plain


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--sample", "--beam", 4], "sampling needs a beam of 1, got --beam 4"),
        (["--seed", 3], "--seed is for sampling, which is off; add --sample, or remove --seed"),
        (["--groups", 2], "--groups above 1 and a --diversity above 0 need each other"),
        (["--suppress", "Hund"], "'Hund' cannot be suppressed: it is no entry of the target vocabulary"),
        (["--alternatives", 2, "--n-best", 2], "--alternatives exclude --sample, --groups and --n-best"),
        (["--sample", "--groups", 2], "sampling has no groups: remove --groups and --diversity"),
        (["--sample", "--n-best", 8000], "at most 1024 hypotheses of a sentence can be live, got 8000"),
        (["--alternatives", 300], "at most 1024 hypotheses of a sentence can be live, got 1200"),
        (["--length-penalty-kind", "none", "--length-penalty", 2], "none divides by 1: it takes no --length-penalty"),
        (["--min-length", 9, "--max-length", 8], "--min-length must be at most --max-length (8), got 9"),
    ],
)
def test_invalid_options_are_a_usage_error(translate, options, error):
    assert translate(b"a cat\n", *options, code=2, error=error).stdout == ""


@pytest.mark.parametrize("options", [["--beam", 40], ["--suppress", "</s>"]])
def test_unsupported_option_is_rejected_before_the_first_line(translate, tmp_path, options):
    translate(b"", "--output", tmp_path / "out", *options, code=2)
    assert not (tmp_path / "out").exists()


def test_sampling_takes_any_maximum_length(translate):
    assert translate(b"a cat\n", "--sample", "--max-length", 10**12).stdout == "un chat\n"


@pytest.mark.parametrize("options", [["--sample", "--temperature", 3], ["--min-length", 100, "--no-repeat-ngram", 2]])
def test_padding_and_begin_symbols_are_never_generated(translate, options):
    output = translate(
        b"a cat\n", "--n-best", 5, *options, *(["--seed", 2] if "--sample" in options else ["--beam", 5])
    ).stdout
    assert "<pad>" not in output
    assert "<s>" not in output
    assert "chat" in output


def test_help_explains_the_options(edge_attn_cli):
    text = " ".join(edge_attn_cli("translate", "--help").stdout.split())
    for words in (
        "Maximum number of tokens, including the end symbol.",
        "Duplicates are removed, so fewer than --n-best translations may be returned.",
        "File with the beginning of each translation, in whole words, one per line.",
        "the same seed and line give the same samples.",
        "Exponent alpha of the length penalty.",
    ):
        assert words in text


def test_translations_and_alignments_need_two_files(translate, tmp_path):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to("there")
    for one, other in (("out", "out"), ("out", "../" + tmp_path.name + "/out"), ("link", "there")):
        files = ["--output", tmp_path / one, "--alignments", tmp_path / other]
        translate(b"a cat\n", *files, code=2, error="cannot contain both the translations and the alignments")
    assert (tmp_path / "there").read_text() == "before"
    translate(b"a cat\n", "--output", os.devnull, "--alignments", os.devnull)


def test_model_without_attention_has_no_alignments(edge_attn_cli, tmp_path):
    bundle = KINDS_FOLDER / "none-gru.zip"
    error = "an alignment needs attention weights, and this model has no attention"
    edge_attn_cli("translate", bundle, "--alignments", tmp_path / "al", "--input", os.devnull, code=2, error=error)
    assert list(tmp_path.iterdir()) == []
