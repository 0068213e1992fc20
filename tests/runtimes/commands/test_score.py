"""Scores of given translations: on a table by enumeration, on real models as the search and the steps say them."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import EMBEDDED_BUNDLE
from table_model import KNOWN, WORDS, TableModel, random_tables, table, translator, worth

import edge_attn
from edge_attn.errors import InputError
from edge_attn.parity import recorder
from edge_attn.runtimes.commands import score
from edge_attn.runtimes.commands.score import Total
from edge_attn.runtimes.tasks.translation import SourceCutWarning, Translator
from edge_attn.text.tokenizers import EOS

READY = EMBEDDED_BUNDLE


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
def test_a_target_is_worth_what_the_table_says(target, tokens, probabilities):
    [found] = translator(TableModel(table(KNOWN))).score([("a", target)])
    assert found.tokens == tokens
    assert found.source_tokens == ("a", "</s>")
    assert found.unknown == tokens.count("<unk>")
    np.testing.assert_allclose(np.exp(found.log_probs), probabilities)
    assert math.exp(found.log_prob) == pytest.approx(math.prod(probabilities))
    expected = math.prod(probabilities)
    assert found.perplexity == (pytest.approx(expected ** (-1 / len(probabilities))) if expected else math.inf)


def test_all_that_the_table_can_say_is_worth_one():
    said = [" ".join(words) for n in range(4) for words in itertools.product((*WORDS, "zebra"), repeat=n)]
    found = translator(TableModel(table(KNOWN))).score([("a", target) for target in said])
    assert sum(math.exp(one.log_prob) for one in found) == pytest.approx(1.0)
    assert sum(math.isfinite(one.log_prob) for one in found) == 7


SENTENCES = st.lists(st.sampled_from((*WORDS, "zebra")), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=12),
    st.sampled_from([1, 12, 1000]),
    st.sampled_from([None, 1, 3]),
)
def test_a_pair_among_others_is_worth_exactly_what_it_is_alone(seed, pairs, batch_tokens, most):
    tables = random_tables(seed, 4)
    runtime = TableModel(tables, [0, 1, 2, 3, 2, 1, 0], most)
    made = translator(runtime)
    together = made.score(pairs, True, batch_tokens)
    assert max(runtime.batches) <= (most or len(pairs))
    for pair, found in zip(pairs, together, strict=True):
        [alone] = made.score([pair], True)
        assert found == alone
        np.testing.assert_array_equal(found.alignment, alone.alignment)
        first = made.text.encode_source(pair[0])[0]
        assert list(found.log_probs) == worth(tables[first % 4], made.text.target.encode(pair[1]))


@pytest.mark.parametrize("pair", [("a", "b " * 9), ("b " * 9, "a")], ids=["target", "source"])
def test_a_batch_is_as_large_as_its_longer_side_allows(pair):
    runtime = TableModel(random_tables(1, 4))
    translator(runtime).score([pair] * 6, batch_tokens=20)
    assert runtime.batches == [2, 2, 2]


@pytest.mark.parametrize("beam", [1, 5])
def test_a_translation_is_worth_what_the_search_said(model, pairs, beam):
    translations = model.translate([source for source, _ in pairs[:30]], beam=beam, n_best=beam)
    said = [(s, h) for (s, _), t in zip(pairs, translations, strict=False) for h in t.n_best if h.finished]
    scores = model.score([(source, hypothesis.text) for source, hypothesis in said])
    assert len(scores) >= 30 * beam // 2
    for (_, hypothesis), found in zip(said, scores, strict=True):
        if not found.unknown:
            assert found.tokens == hypothesis.tokens
            assert found.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-4)


def test_the_log_probabilities_are_those_of_the_forced_steps(model, pairs):
    sources = [model.text.encode_source(source) for source, _ in pairs]
    targets = [model.text.target.encode(target) for _, target in pairs]
    scores = model.score(pairs)
    for found, expected in zip(scores, recorder._along(model.runtime, sources, targets), strict=True):
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
        assert found.log_prob == pytest.approx(float(expected.sum()), abs=1e-5)


@pytest.mark.parametrize("bundle", ["toy", "ready"])
def test_company_changes_nothing(toy_bundle, pairs, bundle):
    made = edge_attn.load(toy_bundle if bundle == "toy" else READY, threads=1)
    some = [(source, target) if i % 3 else (source, source) for i, (source, target) in enumerate(pairs[:40])]
    together = made.score(some, alignments=True)
    alone = made.score(some[::-1], alignments=True, batch_tokens=1)[::-1]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
        np.testing.assert_allclose(one.alignment, other.alignment, atol=1e-5)


@pytest.mark.usefixtures("needs_torch")
def test_a_checkpoint_scores_on_torch_as_its_bundle(model, toy_checkpoint, pairs):
    reference = Translator.open(toy_checkpoint)
    for one, other in zip(reference.score(pairs[:20]), model.score(pairs[:20]), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_a_right_translation_is_worth_more_than_a_wrong_one(model, pairs):
    right = model.score(pairs)
    wrong = model.score([(source, other) for (source, _), (_, other) in zip(pairs, pairs[1:] + pairs[:1], strict=True)])
    better = sum(a.perplexity < b.perplexity for a, b in zip(right, wrong, strict=True))
    assert better >= 0.95 * len(pairs)


def test_a_long_source_is_cut_with_a_warning(model):
    with pytest.warns(SourceCutWarning, match="the source of pair 1 has more than 20 tokens; only the first were read"):
        first, second = model.score([("a cat", "un chat"), ("a cat and " * 20, "un chat")])
    assert (first.cut, second.cut) == (False, True)
    assert len(second.source_tokens) == 20


@pytest.mark.parametrize("empty", ["", " ", "\u3000"])
def test_an_empty_side_is_its_end_symbol(model, empty):
    no_target, no_source = model.score([("a cat", empty), (empty, "un chat")], alignments=True)
    assert (no_target.tokens, len(no_target.log_probs)) == ((), 1)
    assert no_source.source_tokens == ("</s>",)
    assert no_target.pharaoh() == no_source.pharaoh() == ""
    assert math.isfinite(no_source.log_prob)


@pytest.mark.parametrize("bad", ["un chat", ("a cat",), ("a", "b", "c"), ("a cat", b"un chat"), 5, None])
def test_a_pair_must_be_two_strings(model, bad):
    with pytest.raises(InputError, match=r"pair 1 must be \(source, target\), two strings"):
        model.score([("a cat", "un chat"), bad])


def test_no_pair_has_no_score(model):
    assert model.score([]) == []


def test_a_model_that_says_no_number_scores_none():
    [found] = translator(TableModel(np.full((1, 7, 7), np.nan))).score([("a", "b")])
    assert math.isnan(found.log_prob)
    assert math.isnan(found.perplexity)


def test_a_total_is_the_sum_and_its_perplexity_per_token():
    scores = translator(TableModel(table(KNOWN))).score([("a", "a b"), ("a", "b zebra"), ("a", "")])
    total = Total()
    for found in scores:
        total += found
    assert (total.pairs, total.tokens, total.unknown, total.cut) == (3, 7, 1, 0)
    probability = 0.5 * 0.3 * 0.75 * 0.2 * 0.25 * 1.0 * 0.2
    assert total.log_prob == pytest.approx(math.log(probability))
    assert total.perplexity == pytest.approx(probability ** (-1 / 7))
    assert "1 of the target tokens are unknown to the model" in str(total)
    assert "cut" not in str(total)


@pytest.fixture
def run(edge_attn_cli, toy_bundle, tmp_path):
    """Scores a file of these bytes; gives what is said on both streams, and its exit code is `code`."""

    def run(lines: bytes, *options: object, name: str = "pairs.tsv", **expected: object):
        (tmp_path / name).write_bytes(lines)
        return edge_attn_cli("score", toy_bundle, tmp_path / name, *options, **expected)

    return run


LINES = b"a cat\tun chat\n\nthe old king\tle vieux roi\r\n\tun\na cat\t\n"


def test_text_has_a_line_for_a_line_and_the_total_stands_apart(run, model):
    found = run(LINES)
    rows = [line.split("\t") for line in found.stdout.split("\n")]
    assert [len(row) for row in rows] == [3, 1, 3, 3, 3, 1]
    scores = model.score([("a cat", "un chat"), ("the old king", "le vieux roi"), ("", "un"), ("a cat", "")])
    for row, expected in zip([rows[0], *rows[2:5]], scores, strict=True):
        assert float(row[0]) == pytest.approx(expected.log_prob, abs=1e-4)
        assert float(row[1]) == pytest.approx(expected.perplexity, rel=1e-4)
        tokens = [token.rsplit(":", 1) for token in row[2].split(" ")]
        assert [name for name, _ in tokens] == [*expected.tokens, "</s>"]
        np.testing.assert_allclose([float(value) for _, value in tokens], expected.log_probs, atol=1e-4)
    assert found.stderr.startswith("4 pairs, 10 tokens with the end symbols: log-probability -")
    assert found.stderr.count("\n") == 1


def test_jsonl_tells_all(run, model):
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


def test_what_is_no_number_in_json_is_told_as_text(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(score.Translator, "open", lambda *_: translator(TableModel(table(KNOWN))))
    (tmp_path / "pairs.tsv").write_text("a\tc\n")
    score.score(tmp_path, tmp_path / "pairs.tsv", format="jsonl")
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (content["log_prob"], content["perplexity"], content["log_probs"]) == ("-inf", "inf", ["-inf", "-inf"])


def test_unknown_tokens_and_cut_sources_are_told(run):
    found = run(b"a cat\tun z\xc3\xa9bu\n" + b"a cat and " * 20 + b"\tun chat\n")
    warning, total, end = found.stderr.split("\n")
    assert warning == "warning: line 2 has more than 20 source tokens; only the first were read"
    assert "1 of the target tokens are unknown to the model, and were scored as <unk>" in total
    assert "1 of the sources are longer than the model reads, and were cut" in total
    assert end == ""
    assert " <unk>:" in found.stdout


def test_any_window_and_a_compressed_file_say_the_same(run, monkeypatch, toy_pairs):
    data = toy_pairs.read_bytes()
    whole = run(data, "--format", "jsonl").stdout
    assert run(gzip.compress(data), "--format", "jsonl", name="pairs.tsv.gz").stdout == whole
    monkeypatch.setattr(score, "WINDOW", 7)
    rows, others = (
        [json.loads(line) for line in text.splitlines()] for text in (whole, run(data, "--format", "jsonl").stdout)
    )
    assert [row["line"] for row in others] == [row["line"] for row in rows] == list(range(1, 101))
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_allclose(row["log_probs"], other["log_probs"], atol=1e-5)


def test_no_more_than_a_window_is_read_ahead(monkeypatch, model, toy_pairs):
    read = []
    monkeypatch.setattr(score, "WINDOW", 5)
    monkeypatch.setattr(score, "iter_pairs", lambda *_: (read.append(i) or ("a cat", "un chat") for i in range(23)))
    for number, line in enumerate(score.each_line(model, toy_pairs), 1):
        assert line.number == number
        assert len(read) <= 5 * math.ceil(number / 5)
    assert len(read) == 23


def test_another_separator_and_a_file_that_is_written_whole(run, tmp_path):
    found = run(b"a cat|||un chat\n", "--separator", "|||", "--output", tmp_path / "out")
    assert found.stdout == ""
    assert (tmp_path / "out").read_text().count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.tsv"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a dog\n", "line 3: expected source and target with one '\\t' between them, got 1 column"),
        (b"a\tb\tc\n", "line 3: expected source and target with one '\\t' between them, got 3 columns"),
        (b"a \xff cat\tun chat\n", "line 3: not UTF-8 at byte 3"),
        (b"a cat\tun\0chat\n", "line 3: contains a NUL byte; the input is not text"),
    ],
)
def test_a_line_that_is_no_pair_is_named_and_those_before_it_are_answered(run, tmp_path, line, said):
    lines = b"a cat\tun chat\nthe king\tle roi\n" + line + b"a dog\tun chien\n"
    found = run(lines, code=4, error=said)
    assert found.stdout.count("\n") == 2
    assert str(tmp_path / "pairs.tsv") in found.stderr
    run(lines, "--output", tmp_path / "out", code=4, error=said)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_a_file_that_is_none_is_named(edge_attn_cli, run, toy_bundle, tmp_path):
    said = f"{tmp_path / 'none.tsv'} cannot be read: No such file or directory"
    edge_attn_cli("score", toy_bundle, tmp_path / "none.tsv", code=4, error=said)
    run(b"\n\n", code=4, error="is empty: expected one pair a line")
    edge_attn_cli("score", tmp_path, tmp_path / "pairs.tsv", code=4, error="is not a bundle")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runtime", "tvm"], "unknown runtime 'tvm'; known: "),
        (["--precision", "int8"], "the runtime ort-cpu serves fp32"),
        (["--separator", ""], "separator must not be empty"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(run, options, said):
    assert run(b"a cat\tun chat\n", *options, code=2, error=said).stdout == ""


@pytest.mark.parametrize("verb", ["score", "align"])
def test_no_standard_output_at_all_is_one_sentence(run_edge_attn, toy_bundle, toy_pairs, verb):
    done = run_edge_attn(verb, toy_bundle, toy_pairs, before="sys.stdout = None")
    assert (done.returncode, done.stderr) == (4, b"edge-attn: standard output is closed; give a file with --output\n")


@pytest.mark.parametrize("verb", ["score", "align"])
def test_the_help_says_that_a_text_is_split_anew(edge_attn_cli, verb):
    assert "split into tokens anew" in " ".join(edge_attn_cli(verb, "--help").stdout.split())


def test_an_output_that_cannot_be_written_is_named(run, run_edge_attn, toy_bundle, toy_pairs, tmp_path):
    said = f"{tmp_path / 'absent' / 'out'} cannot be written: No such file"
    run(b"a cat\tun chat\n", "--output", tmp_path / "absent" / "out", code=4, error=said)
    with Path("/dev/full").open("wb") as full:
        done = run_edge_attn("score", toy_bundle, toy_pairs, stdout=full)
    assert done.returncode == 4
    assert b"standard output cannot be written: No space left on device" in done.stderr


@pytest.mark.usefixtures("needs_torch")
def test_the_command_scores_with_a_checkpoint_too(edge_attn_cli, run, toy_checkpoint, tmp_path):
    found = run(b"a cat\tun chat\n")
    reference = edge_attn_cli("score", toy_checkpoint, tmp_path / "pairs.tsv")
    assert float(found.stdout.split("\t")[0]) == pytest.approx(float(reference.stdout.split("\t")[0]), abs=2e-4)


def test_the_end_symbols_text_in_a_target_is_a_word_like_any_other(model):
    [found] = model.score([("a cat", "un </s> chat")])
    assert found.tokens == ("un", "<unk>", "chat")
    assert EOS not in model.text.target.encode("un </s> chat")
