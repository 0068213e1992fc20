"""`edge-attn evaluate` computes the scores of sacrebleu."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from xml.etree import ElementTree

import pytest

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.commands.corpus_scores import Evaluation
from edge_attn.runtimes.commands.evaluate import BINS, _join_neighbors, evaluate
from edge_attn.runtimes.tasks.translation import Translation, Translator

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'edge-attn[evaluate]'")


@pytest.fixture(scope="module")
def pairs(toy_pairs) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in toy_pairs.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path, pairs):
    """File of correct and wrong references, and a second reference of one source, which is ignored."""
    path = tmp_path / "corpus.tsv"
    rows = [(source, target if i % 3 else f"{target} et un roi") for i, (source, target) in enumerate(pairs[:40])]
    rows.append((pairs[1][0], "autre chose"))
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    return path


def evaluate_one(*arguments: object, **options: object) -> Evaluation:
    """Evaluate one model."""
    [evaluation] = evaluate(*arguments, **options).evaluations
    return evaluation


def test_scores_are_sacrebleus_on_the_first_references(toy_bundle, corpus, pairs):
    evaluation = evaluate_one(toy_bundle, corpus, SearchConfig(beam=2))
    translations = Translator.open(toy_bundle).translate([source for source, _ in pairs[:40]], beam=2)
    hypotheses = [translation.text for translation in translations]
    references = [line.split("\t")[1] for line in corpus.read_text().splitlines()[:40]]
    bleu, total = sacrebleu.corpus_bleu(hypotheses, [references]), evaluation.total
    assert total.sentences == 40
    assert 50 < total.bleu < 100
    assert total.bleu == pytest.approx(bleu.score)
    assert total.chrf == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    assert total.exact == pytest.approx(sum(a == b for a, b in zip(hypotheses, references, strict=True)) / 40)
    assert total.low < total.bleu < total.high
    assert evaluation.signatures[0].startswith("BLEU: nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp")
    assert evaluation.signatures[1].startswith("chrF: nrefs:1|")
    assert evaluation.provider == "CPUExecutionProvider"
    assert evaluation.bins == ()


def test_text_has_scores_and_signatures(edge_attn_cli, toy_bundle, corpus):
    text = edge_attn_cli("evaluate", toy_bundle, corpus, "--beam", 1, "--limit", 10).stdout
    assert "beam 1, 10 distinct sources, first reference" in text
    for word in ("BLEU ", "95 % interval", "chrF ", "exact match ", "signature BLEU: nrefs:1|"):
        assert word in text


def test_json_has_the_same_scores(edge_attn_cli, toy_bundle, corpus):
    options = ["--beam", 1, "--limit", 10, "--by-length"]
    [content] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, "--json").stdout)
    report = evaluate(toy_bundle, corpus, SearchConfig(beam=1), by_length=True, limit=10)
    [expected] = json.loads(report.json())
    assert {**content, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_scores_like_its_bundle(edge_attn_cli, toy_bundle, toy_checkpoint, corpus):
    text = edge_attn_cli("evaluate", toy_checkpoint, corpus, "--against", toy_bundle, "--beam", 1, "--json").stdout
    reference, deployed = json.loads(text)
    assert reference["provider"].startswith("torch ")
    assert reference["total"] == deployed["total"]


def test_small_bins_are_filled_with_joined_neighbors(toy_bundle, pairs, toy_pairs):
    evaluation = evaluate_one(toy_bundle, toy_pairs, SearchConfig(beam=1), by_length=True)
    for b in evaluation.bins:
        single = [source for source, _ in pairs if b.first <= len(source.split()) <= b.last]
        assert b.score.sentences == len(single) + b.joined
        assert b.score.sentences <= 100 or not b.joined
    assert [(b.first, b.last) for b in evaluation.bins] == list(BINS[: len(evaluation.bins)])
    assert evaluation.bins[0].joined == 0  # no source is shorter
    assert evaluation.bins[3].joined > 0
    assert "of them joined" in str(evaluation)


@pytest.mark.parametrize(("first", "last"), BINS)
def test_joined_neighbors_fit_the_bin_and_use_each_pair_once(first, last):
    sizes = random.Random(5).choices(range(1, 24), k=400)
    pairs = [(" ".join(f"s{i}" for _ in range(size)), f"t{i}") for i, size in enumerate(sizes)]
    joined = _join_neighbors(pairs, first, last, 50)
    assert len(joined) <= 50
    used = []
    for source, target in joined:
        words = source.split()
        assert first <= len(words) <= last
        parts = list(dict.fromkeys(int(word[1:]) for word in words))
        assert parts == list(range(parts[0], parts[0] + len(parts)))  # complete neighbors
        assert len(parts) > 1
        assert len(words) == sum(sizes[i] for i in parts)
        assert target == " ".join(f"t{i}" for i in parts)
        assert all(sizes[i] < first for i in parts)  # a longer pair is scored in a bin itself
        used += parts
    assert len(set(used)) == len(used)
    assert bool(joined) == (first > 1)
    assert _join_neighbors(pairs, first, last, 0) == []


def test_two_models_are_printed_and_plotted(edge_attn_cli, toy_bundle, toy_pairs, tmp_path):
    picture = tmp_path / "length.svg"
    options = ["--against", toy_bundle, "--picture", picture, "--limit", 30, "--beam", 1]
    text = edge_attn_cli("evaluate", toy_bundle, toy_pairs, *options).stdout
    assert text.count("30 distinct sources") == 2
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert len(root.findall("{*}polyline")) == 2
    labels = [label.text for label in root.findall("{*}text")]
    assert labels.count("toy-bundle.zip") == 2
    assert "1-5" in labels


def test_separator_splits_the_pairs(toy_bundle, tmp_path, pairs):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{source}|||{target}\n" for source, target in pairs[:4]))
    assert evaluate_one(toy_bundle, path, separator="|||").total.sentences == 4
    with pytest.raises(UsageError, match="`separator` must not be empty"):
        evaluate(toy_bundle, path, separator="")


def test_compressed_corpus_is_read(toy_bundle, tmp_path, toy_pairs):
    import gzip

    path = tmp_path / "corpus.tsv.gz"
    path.write_bytes(gzip.compress(toy_pairs.read_bytes()))
    assert evaluate_one(toy_bundle, path, SearchConfig(beam=1), limit=3).total.sentences == 3


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a cat\tun chat\na dog\n", "line 2: expected source and target with one '\\t' between them, got 1 column"),
        (b"a cat\tun chat\ta\tb\n", "got 4 columns; choose two with --columns"),
        (b"a cat\tun chat\n\xff\t\n", "line 2: not UTF-8 at byte 1"),
        (b"", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_invalid_corpus_is_named(edge_attn_cli, toy_bundle, tmp_path, content, error):
    path = tmp_path / "corpus.tsv"
    if content is not None:
        path.write_bytes(content)
    result = edge_attn_cli("evaluate", toy_bundle, path, code=4, error=error)
    assert str(path) in result.stderr
    assert result.stdout == ""


def test_unwritable_picture_is_named(edge_attn_cli, toy_bundle, toy_pairs, tmp_path):
    (tmp_path / "file").write_text("")
    command = ["evaluate", toy_bundle, toy_pairs, "--picture"]
    edge_attn_cli(*command, tmp_path / "file" / "picture.svg", code=4, error="picture.svg cannot be written: ")


@pytest.mark.parametrize("name", ["a.png", "a.PDF", "a.svg.gz"])
def test_picture_of_another_format_is_a_usage_error(edge_attn_cli, toy_bundle, toy_pairs, tmp_path, name):
    command = ["evaluate", toy_bundle, toy_pairs, "--picture", tmp_path / name]
    edge_attn_cli(*command, code=2, error="--picture is written as SVG, got the suffix")
    assert list(tmp_path.iterdir()) == []


def test_picture_appears_in_a_new_folder(edge_attn_cli, toy_bundle, toy_pairs, tmp_path):
    picture = tmp_path / "plots" / "length.SVG"
    edge_attn_cli("evaluate", toy_bundle, toy_pairs, "--picture", picture, "--limit", 5, "--beam", 1)
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_path_without_a_model_is_an_error(toy_pairs, tmp_path):
    with pytest.raises(InputError, match="is not a bundle"):
        evaluate(tmp_path, toy_pairs)


def test_without_sacrebleu_the_exit_code_is_3(run_edge_attn, toy_bundle, toy_pairs):
    result = run_edge_attn("evaluate", toy_bundle, toy_pairs, absent=("sacrebleu",))
    assert (result.returncode, result.stdout) == (3, b"")
    assert result.stderr == b"edge-attn: sacrebleu is not installed; run: pip install 'edge-attn[evaluate]'\n"


def test_truncated_sources_are_counted(toy_bundle, tmp_path, pairs):
    path = tmp_path / "long.tsv"
    long_source = " ".join(source for source, _ in pairs)
    path.write_text(f"{long_source}\tun\n{pairs[0][0]}\t{pairs[0][1]}\n", encoding="utf-8")
    evaluation = evaluate_one(toy_bundle, path, SearchConfig(beam=1))
    assert evaluation.cut == 1
    assert "1 of the sources are longer than the model reads, and were truncated" in str(evaluation)


def test_changed_search_options_are_shown(edge_attn_cli, toy_bundle, corpus):
    options = ["--limit", 10, "--beam", 2, "--min-length", 3, "--suppress", "le"]
    text = edge_attn_cli("evaluate", toy_bundle, corpus, *options).stdout
    assert "\noptions min_length 3, suppress ['le']\n" in text
    [changed] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, "--json").stdout)
    assert (changed["beam"], changed["options"]) == (2, {"min_length": 3, "suppress": ["le"]})
    [default] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, "--limit", 10, "--json").stdout)
    assert default["options"] == {}
    assert "options" not in edge_attn_cli("evaluate", toy_bundle, corpus, "--limit", 10).stdout


def test_search_options_change_the_scores(edge_attn_cli, toy_bundle, corpus):
    options = ["--beam", 1, "--limit", 10, "--json"]
    [default] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options).stdout)
    for more in (["--suppress", "le"], ["--sample", "--temperature", 20], ["--min-length", 15]):
        [changed] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, *more).stdout)
        assert changed["total"]["bleu"] < default["total"]["bleu"]
    edge_attn_cli("evaluate", toy_bundle, corpus, "--suppress", "Hund", code=2, error="'Hund' cannot be suppressed")


def test_all_references_are_sacrebleus(toy_bundle, tmp_path, pairs):
    path = tmp_path / "corpus.tsv"
    rows = [(source, target if i % 3 else f"{target} et un roi") for i, (source, target) in enumerate(pairs[:20])]
    rows += [(source, target) for source, target in pairs[:6]]  # the second references of six sources, one of them new
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    first, both = (evaluate_one(toy_bundle, path, SearchConfig(beam=1), references=name) for name in ("first", "all"))
    hypotheses = [t.text for t in Translator.open(toy_bundle).translate([source for source, _ in pairs[:20]], beam=1)]
    second = [target if i < 6 and i % 3 == 0 else None for i, (_, target) in enumerate(pairs[:20])]
    streams = [[target for _, target in rows[:20]], second]
    assert both.total.bleu == pytest.approx(sacrebleu.corpus_bleu(hypotheses, streams).score)
    assert both.total.chrf == pytest.approx(sacrebleu.corpus_chrf(hypotheses, streams).score)
    assert both.total.bleu > first.total.bleu
    assert both.total.exact > first.total.exact
    assert (first.reference_count, first.unused_references) == (20, 2)
    assert (both.reference_count, both.unused_references) == (22, 0)
    assert both.signatures[0].startswith("BLEU: nrefs:var|")
    assert "20 distinct sources, all 22 references" in str(both)
    assert "2 further references were not used; --references all uses them" in str(first)
    with pytest.raises(UsageError, match="`references` must be one of first, all, got 'second'"):
        evaluate(toy_bundle, path, references="second")


def test_two_models_are_compared_by_sacrebleus_paired_test(edge_attn_cli, toy_bundle, toy_pairs, tmp_path, monkeypatch):
    """The second model is the first one with errors in every third sentence."""
    from sacrebleu.significance import PairedTest

    from edge_attn.runtimes.commands import evaluate as module

    other = shutil.copy(toy_bundle, tmp_path / "other.zip")
    texts: list[list[str]] = []

    def spoiled(translator: Translator, pairs: list[tuple[str, str]], config: SearchConfig) -> list[Translation]:
        translations = translate(translator, pairs, config)
        if texts:
            translations = [
                dataclasses.replace(t, text=t.text if i % 3 else f"{t.text} le roi") for i, t in enumerate(translations)
            ]
        texts.append([t.text for t in translations])
        return translations

    translate = module._translate
    monkeypatch.setattr(module, "_translate", spoiled)
    first, second = evaluate(toy_bundle, toy_pairs, SearchConfig(beam=1), against=other, limit=40).evaluations
    targets = [line.split("\t")[1] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:40]]
    metrics = {"BLEU": sacrebleu.BLEU(), "chrF": sacrebleu.CHRF()}
    _, scores = PairedTest([("a", texts[0]), ("b", texts[1])], metrics, [targets], "bs", 1000)()
    comparison = second.comparison
    assert first.comparison is None
    assert comparison.bleu == pytest.approx(second.total.bleu - first.total.bleu)
    assert comparison.chrf == pytest.approx(second.total.chrf - first.total.chrf)
    assert comparison.bleu < -1
    assert (comparison.bleu_p, comparison.chrf_p) == (scores["BLEU"][1].p_value, scores["chrF2"][1].p_value)
    assert comparison.bleu_p < 0.01
    assert f"difference from the first model: BLEU {comparison.bleu:+.2f} (p = {comparison.bleu_p:.4f})" in str(second)


def test_a_model_does_not_differ_from_itself(edge_attn_cli, toy_bundle, corpus):
    options = ["--against", toy_bundle, "--beam", 1, "--json", "--limit", 20]
    first, second = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options).stdout)
    assert first["comparison"] is None
    assert (second["comparison"]["bleu"], second["comparison"]["chrf"]) == (0.0, 0.0)
    assert (second["comparison"]["bleu_p"], second["comparison"]["chrf_p"]) == (1.0, 1.0)


def test_absent_second_model_is_refused_before_the_first_one_runs(monkeypatch, toy_bundle, toy_pairs, tmp_path):
    monkeypatch.setattr(Translator, "open", lambda *_: pytest.fail("a model was opened"))
    with pytest.raises(InputError, match="absent is not a bundle"):
        evaluate(toy_bundle, toy_pairs, against=tmp_path / "absent")
