"""Scores equal those of a table model by enumeration, and those of the search and of forced steps on real models."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import EMBEDDED_BUNDLE
from table_decoder import random_tables
from table_model import NAMES, PROBABILITIES, WORDS, TableModel, table, token_log_probs, translator

import edge_attn
from edge_attn.cli import cli
from edge_attn.errors import InputError
from edge_attn.parity.recorder import run_teacher_forced
from edge_attn.runtimes.commands import line_io, score
from edge_attn.runtimes.commands.bad_lines import BadLines
from edge_attn.runtimes.commands.score import ScoreTotal
from edge_attn.runtimes.tasks.scoring import LONGEST_TARGET
from edge_attn.runtimes.tasks.translation import SourceCutWarning, Translator
from edge_attn.text.tokenizers import EOS


@pytest.fixture(scope="module")
def model(toy_bundle) -> Translator:
    return edge_attn.load(toy_bundle)


@pytest.fixture(scope="module")
def pairs(toy_pairs) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in toy_pairs.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("target", "tokens", "probabilities"),
    [
        ("a b", ("a", "b"), [0.5, 0.3, 0.75]),
        ("", (), [0.2]),
        ("b zebra", ("b", "<unk>"), [0.2, 0.25, 1.0]),
        ("</s>", ("<unk>",), [0.1, 1.0]),
        ("c", ("c",), [0.0, 0.0]),
    ],
)
def test_score_is_that_of_the_table(target, tokens, probabilities):
    [result] = translator(TableModel(table(PROBABILITIES))).score([("a", target)])
    assert result.tokens == tokens
    assert result.source_tokens == ("a", "</s>")
    assert result.unknown == tokens.count("<unk>")
    np.testing.assert_allclose(np.exp(result.log_probs), probabilities)
    expected = math.prod(probabilities)
    assert math.exp(result.log_prob) == pytest.approx(expected)
    assert result.perplexity == (pytest.approx(expected ** (-1 / len(probabilities))) if expected else math.inf)


def test_probabilities_of_all_targets_sum_to_one():
    targets = [" ".join(words) for n in range(4) for words in itertools.product((*WORDS, "zebra"), repeat=n)]
    scores = translator(TableModel(table(PROBABILITIES))).score([("a", target) for target in targets])
    assert sum(math.exp(result.log_prob) for result in scores) == pytest.approx(1.0)
    assert sum(math.isfinite(result.log_prob) for result in scores) == 7


SENTENCES = st.lists(st.sampled_from((*WORDS, "zebra")), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=12),
    st.sampled_from([1, 12, 1000]),
    st.sampled_from([None, 1, 3]),
)
def test_score_in_a_batch_equals_the_score_alone(seed, pairs, batch_tokens, max_batch):
    tables = random_tables(seed, 4, len(NAMES))
    runtime = TableModel(tables, [0, 1, 2, 3, 2, 1, 0], max_batch)
    model = translator(runtime)
    scores = model.score(pairs, True, batch_tokens)
    assert max(runtime.batches) <= (max_batch or len(pairs))
    for pair, result in zip(pairs, scores, strict=True):
        [alone] = model.score([pair], True)
        assert result == alone
        np.testing.assert_array_equal(result.alignment, alone.alignment)
        first = model.text.encode_source(pair[0])[0]
        assert list(result.log_probs) == token_log_probs(tables[first % 4], model.text.target.encode(pair[1]))


@pytest.mark.parametrize("pair", [("a", "b " * 9), ("b " * 9, "a")], ids=["target", "source"])
def test_batch_size_depends_on_the_longer_side(pair):
    runtime = TableModel(random_tables(1, 4, len(NAMES)))
    translator(runtime).score([pair] * 6, batch_tokens=20)
    assert runtime.batches == [2, 2, 2]


@pytest.mark.parametrize("beam", [1, 5])
def test_score_of_a_translation_is_that_of_the_search(model, pairs, beam):
    translations = model.translate([source for source, _ in pairs[:30]], beam=beam, n_best=beam)
    finished = [(s, h) for (s, _), t in zip(pairs, translations, strict=False) for h in t.n_best if h.finished]
    scores = model.score([(source, hypothesis.text) for source, hypothesis in finished])
    assert len(scores) >= 30 * beam // 2
    for (_, hypothesis), result in zip(finished, scores, strict=True):
        if not result.unknown:
            assert result.tokens == hypothesis.tokens
            assert result.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-4)


def test_log_probs_are_those_of_forced_steps(model, pairs):
    sources = [model.text.encode_source(source) for source, _ in pairs]
    targets = [model.text.target.encode(target) for _, target in pairs]
    scores = model.score(pairs)
    steps = run_teacher_forced(model.runtime, sources, targets)
    for result, target, outputs in zip(scores, targets, steps, strict=True):
        expected = outputs.log_probs[np.arange(len(target) + 1), [*target, EOS]]  # (tgt + 1)
        np.testing.assert_allclose(result.log_probs, expected, atol=1e-5)
        assert result.log_prob == pytest.approx(float(expected.sum()), abs=1e-5)


@pytest.mark.parametrize("bundle", ["toy", "ready"])
def test_batch_and_order_do_not_change_scores(toy_bundle, pairs, bundle):
    model = edge_attn.load(toy_bundle if bundle == "toy" else EMBEDDED_BUNDLE, threads=1)
    mixed = [(source, target) if i % 3 else (source, source) for i, (source, target) in enumerate(pairs[:40])]
    batched = model.score(mixed, alignments=True)
    single = model.score(mixed[::-1], alignments=True, batch_tokens=1)[::-1]
    for a, b in zip(batched, single, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)
        np.testing.assert_allclose(a.alignment, b.alignment, atol=1e-5)


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_scores_like_its_bundle(model, toy_checkpoint, pairs):
    reference = Translator.open(toy_checkpoint)
    for expected, actual in zip(reference.score(pairs[:20]), model.score(pairs[:20]), strict=True):
        np.testing.assert_allclose(actual.log_probs, expected.log_probs, atol=1e-4)


def test_correct_translation_scores_better_than_a_wrong_one(model, pairs):
    right = model.score(pairs)
    wrong = model.score(
        [(source, target) for (source, _), (_, target) in zip(pairs, pairs[1:] + pairs[:1], strict=True)]
    )
    better = sum(a.perplexity < b.perplexity for a, b in zip(right, wrong, strict=True))
    assert better >= 0.95 * len(pairs)


def test_long_source_is_truncated_with_a_warning(model):
    with pytest.warns(SourceCutWarning, match="pair 1: only the first 19 of 60 source tokens were read"):
        first, second = model.score([("a cat", "un chat"), ("a cat and " * 20, "un chat")])
    assert (first.cut, second.cut) == (False, True)
    assert len(second.source_tokens) == 20


@pytest.mark.parametrize("empty", ["", " ", "\u3000"])
def test_empty_side_is_its_end_symbol(model, empty):
    no_target, no_source = model.score([("a cat", empty), (empty, "un chat")], alignments=True)
    assert (no_target.tokens, len(no_target.log_probs)) == ((), 1)
    assert no_source.source_tokens == ("</s>",)
    assert no_target.pharaoh() == no_source.pharaoh() == ""
    assert math.isfinite(no_source.log_prob)


@pytest.mark.parametrize("bad", ["un chat", ("a cat",), ("a", "b", "c"), ("a cat", b"un chat"), 5, None])
def test_pair_must_be_two_strings(model, bad):
    with pytest.raises(InputError, match=r"pair 1 must be \(source, target\), two strings"):
        model.score([("a cat", "un chat"), bad])


def test_no_pairs_have_no_scores(model):
    assert model.score([]) == []


def test_nan_of_the_model_is_the_score():
    [result] = translator(TableModel(np.full((1, 7, 7), np.nan))).score([("a", "b")])
    assert math.isnan(result.log_prob)
    assert math.isnan(result.perplexity)


def test_total_is_the_sum_of_scores():
    scores = translator(TableModel(table(PROBABILITIES))).score([("a", "a b"), ("a", "b zebra"), ("a", "")])
    total = ScoreTotal()
    for result in scores:
        total += result
    assert (total.pairs, total.tokens, total.unknown, total.cut) == (3, 7, 1, 0)
    probability = 0.5 * 0.3 * 0.75 * 0.2 * 0.25 * 1.0 * 0.2
    assert total.log_prob == pytest.approx(math.log(probability))
    assert total.perplexity == pytest.approx(probability ** (-1 / 7))
    assert "1 of the target tokens are unknown to the model" in str(total)
    assert "truncated" not in str(total)


@pytest.fixture
def run(edge_attn_cli, toy_bundle, tmp_path):
    """Score a file of bytes. `code` and `error` are what is expected of `edge_attn_cli`."""

    def run(lines: bytes, *options: object, name: str = "pairs.tsv", **expected: object):
        (tmp_path / name).write_bytes(lines)
        return edge_attn_cli("score", toy_bundle, tmp_path / name, *options, **expected)

    return run


LINES = b"a cat\tun chat\n\nthe old king\tle vieux roi\r\n\tun\na cat\t\n"


def test_text_has_one_line_per_pair_and_the_total_on_stderr(run, model):
    result = run(LINES)
    rows = [line.split("\t") for line in result.stdout.split("\n")]
    assert [len(row) for row in rows] == [3, 1, 3, 3, 3, 1]
    scores = model.score([("a cat", "un chat"), ("the old king", "le vieux roi"), ("", "un"), ("a cat", "")])
    for row, expected in zip([rows[0], *rows[2:5]], scores, strict=True):
        assert float(row[0]) == pytest.approx(expected.log_prob, abs=1e-4)
        assert float(row[1]) == pytest.approx(expected.perplexity, rel=1e-4)
        tokens = [token.rsplit(":", 1) for token in row[2].split(" ")]
        assert [name for name, _ in tokens] == [*expected.tokens, "</s>"]
        np.testing.assert_allclose([float(value) for _, value in tokens], expected.log_probs, atol=1e-4)
    assert result.stderr.startswith("4 pairs, 10 tokens with the end symbols: log-probability -")
    assert result.stderr.count("\n") == 1


def test_jsonl_contains_pair_tokens_and_scores(run, model):
    content = [json.loads(line) for line in run(LINES, "--format", "jsonl").stdout.split("\n")[:-1]]
    assert [(item["line"], item["source"], item["target"]) for item in content] == [
        (1, "a cat", "un chat"),
        (3, "the old king", "le vieux roi"),
        (4, "", "un"),
        (5, "a cat", ""),
    ]
    [expected] = model.score([("a cat", "un chat")])
    first = content[0]
    assert (first["tokens"], first["source_tokens"]) == (["un", "chat"], ["a", "cat", "</s>"])
    assert (first["unknown"], first["cut"]) == (0, False)
    np.testing.assert_allclose(first["log_probs"], expected.log_probs, atol=1e-5)
    assert first["log_prob"] == pytest.approx(sum(first["log_probs"]))
    assert first["perplexity"] == pytest.approx(math.exp(-first["log_prob"] / 3))


def test_infinity_is_text_in_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(score.Translator, "open", lambda *_: translator(TableModel(table(PROBABILITIES))))
    (tmp_path / "pairs.tsv").write_text("a\tc\n")
    score.score(tmp_path, tmp_path / "pairs.tsv", format="jsonl")
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (content["log_prob"], content["perplexity"], content["log_probs"]) == ("-inf", "inf", ["-inf", "-inf"])


def test_unknown_tokens_and_truncated_sources_are_reported(run):
    result = run("a cat\tun éléphant\n".encode() + b"a cat and " * 20 + b"\tun chat\n")
    warning, total, end = result.stderr.split("\n")
    assert warning == "warning: line 2: only the first 19 of 60 source tokens were read"
    assert "1 of the target tokens are unknown to the model, and were scored as <unk>" in total
    assert "1 of the sources are longer than the model reads, and were truncated" in total
    assert end == ""
    assert " <unk>:" in result.stdout


def test_window_size_and_compression_do_not_change_scores(run, monkeypatch, toy_pairs):
    data = toy_pairs.read_bytes()
    output = run(data, "--format", "jsonl").stdout
    assert run(gzip.compress(data), "--format", "jsonl", name="pairs.tsv.gz").stdout == output
    monkeypatch.setattr(line_io, "WINDOW", 7)
    small_windows = run(data, "--format", "jsonl").stdout
    expected, actual = ([json.loads(line) for line in text.splitlines()] for text in (output, small_windows))
    assert [row["line"] for row in actual] == [row["line"] for row in expected] == list(range(1, 101))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a["log_probs"], b["log_probs"], atol=1e-5)


def test_at_most_one_window_is_read_ahead(monkeypatch, model, toy_pairs):
    read = []
    monkeypatch.setattr(line_io, "WINDOW", 5)
    monkeypatch.setattr(score, "scan_pairs", lambda *_: (read.append(i) or ("a cat", "un chat") for i in range(23)))
    for number, line in enumerate(score.score_lines(model, toy_pairs, "\t", (), BadLines("stop", False)), 1):
        assert line.number == number
        assert len(read) <= 5 * math.ceil(number / 5)
    assert len(read) == 23


def test_separator_and_output_file(run, tmp_path):
    assert run(b"a cat|||un chat\n", "--separator", "|||", "--output", tmp_path / "out").stdout == ""
    assert (tmp_path / "out").read_text().count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.tsv"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"a dog\n", "line 3: expected source and target with one '\\t' between them, got 1 column"),
        (b"a\tb\tc\n", "line 3: expected source and target with one '\\t' between them, got 3 columns"),
        (b"a \xff cat\tun chat\n", "line 3: not UTF-8 at byte 3"),
        (b"a cat\tun\0chat\n", "line 3: contains a NUL byte; the input is not text"),
    ],
)
def test_invalid_line_is_named_after_earlier_lines_are_answered(run, tmp_path, line, error):
    lines = b"a cat\tun chat\nthe king\tle roi\n" + line + b"a dog\tun chien\n"
    result = run(lines, code=4, error=error)
    assert result.stdout.count("\n") == 2
    assert str(tmp_path / "pairs.tsv") in result.stderr
    run(lines, "--output", tmp_path / "out", code=4, error=error)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_missing_or_empty_file_is_named(edge_attn_cli, run, toy_bundle, tmp_path):
    error = f"{tmp_path / 'none.tsv'} cannot be read: No such file or directory"
    edge_attn_cli("score", toy_bundle, tmp_path / "none.tsv", code=4, error=error)
    run(b"\n\n", code=4, error="is empty: expected one pair a line")
    edge_attn_cli("score", tmp_path, tmp_path / "pairs.tsv", code=4, error="is not a bundle")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--runtime", "tvm"], "'tvm' is not one of ort-cpu, ort-cuda, "),
        (["--precision", "int8"], "the runtime ort-cpu supports fp32"),
        (["--separator", ""], "separator must not be empty"),
    ],
)
def test_invalid_option_is_a_usage_error(run, options, error):
    assert run(b"a cat\tun chat\n", *options, code=2, error=error).stdout == ""


@pytest.mark.parametrize("verb", ["score", "align"])
def test_closed_standard_output_is_an_error(run_edge_attn, toy_bundle, toy_pairs, verb):
    result = run_edge_attn(verb, toy_bundle, toy_pairs, before="sys.stdout = None")
    assert result.returncode == 4
    assert result.stderr == b"edge-attn: standard output is closed; give a file with --output\n"


@pytest.mark.parametrize("verb", ["score", "align"])
def test_help_explains_that_targets_are_tokenized_again(edge_attn_cli, verb):
    assert "The target text is tokenized again." in " ".join(edge_attn_cli(verb, "--help").stdout.split())


def test_unwritable_output_is_named(run, run_edge_attn, toy_bundle, toy_pairs, tmp_path):
    (tmp_path / "file").write_text("")
    run(b"a cat\tun chat\n", "--output", tmp_path / "file" / "out", code=4, error="cannot be written: ")
    run(b"a cat\tun chat\n", "--output", toy_bundle, code=4, error="is a bundle, and is not overwritten")
    with Path("/dev/full").open("wb") as full:
        result = run_edge_attn("score", toy_bundle, toy_pairs, stdout=full)
    assert result.returncode == 4
    assert b"standard output cannot be written: No space left on device" in result.stderr


@pytest.mark.usefixtures("needs_torch")
def test_command_scores_with_a_checkpoint(edge_attn_cli, run, toy_checkpoint, tmp_path):
    result = run(b"a cat\tun chat\n")
    reference = edge_attn_cli("score", toy_checkpoint, tmp_path / "pairs.tsv")
    assert float(result.stdout.split("\t")[0]) == pytest.approx(float(reference.stdout.split("\t")[0]), abs=2e-4)


def test_text_of_the_end_symbol_is_an_unknown_word(model):
    [result] = model.score([("a cat", "un </s> chat")])
    assert result.tokens == ("un", "<unk>", "chat")
    assert EOS not in model.text.target.encode("un </s> chat")


def test_third_column_is_left_out(run):
    """Tatoeba's pairs have their sources in it."""
    expected = run(b"a cat\tun chat\n").stdout
    result = run(b"a cat\tun chat\tCC-BY 2.0 (France)\n")
    assert result.stdout == expected
    assert run(b"1\tun chat\ta cat\n", "--columns", "3,2").stdout == expected


@pytest.mark.parametrize("columns", ["1", "1,2,3", "0,1", "a,b", "", "1;2", "-1,2"])
def test_bad_columns_are_a_usage_error(run, columns):
    run(b"a cat\tun chat\n", "--columns", columns, code=2, error="is not two column numbers, as 1,2")


LONG = b"un chat " * 3000
BAD_LINES = [
    (b"a cat", "line 2: expected source and target"),
    (b"a\xff\tun", "line 2: not UTF-8 at byte 2"),
    (b"a\0\tun", "line 2: contains a NUL byte"),
    (b"a cat\t" + LONG, f"line 2: the target has 6000 tokens, at most {LONGEST_TARGET} can be scored"),
]


@pytest.mark.parametrize(("line", "error"), BAD_LINES)
def test_bad_line_is_skipped_on_request(run, line, error):
    data = b"a cat\tun chat\n" + line + b"\na cat\tun chat\n"
    expected = run(b"a cat\tun chat\n").stdout
    assert run(data, code=4, error=error).stdout == expected
    result = run(data, "--on-error", "skip")
    assert result.stdout == expected + "\n" + expected
    assert error in result.stderr
    assert result.stderr.count("warning: ") == 1
    rows = [json.loads(row) for row in run(data, "--on-error", "skip", "--format", "jsonl").stdout.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert error in rows[1]["error"]


def test_long_target_is_refused_at_once(model):
    """It would be decoded for minutes, a step a token."""
    with pytest.raises(InputError, match="pair 1: the target has 200000 tokens, at most 4096 can be scored"):
        model.score([("a cat", "un chat"), ("a cat", "un chat " * 100_000)])


def test_dash_is_standard_input_and_output(toy_bundle, run):
    expected = run(b"a cat\tun chat\n").stdout
    data = gzip.compress(b"a cat\tun chat\n\xff\na cat\tun chat\n")
    result = CliRunner().invoke(cli, ["score", str(toy_bundle), "-", "--output", "-"], input=data)
    assert result.exit_code == 4
    assert result.stdout == expected + "\n" + expected
    assert "edge-attn: 1 line was skipped; the first: standard input, line 2: not UTF-8" in result.stderr
