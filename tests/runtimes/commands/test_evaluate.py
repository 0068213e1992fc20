"""The numbers that are claimed: those that sacrebleu gives for what was translated."""

from __future__ import annotations

import json
import random
from xml.etree import ElementTree

import pytest

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.commands.evaluate import BINS, _joined, evaluate
from edge_attn.runtimes.tasks.translation import Translator

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'edge-attn[evaluate]'")


@pytest.fixture(scope="module")
def pairs(toy_pairs) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in toy_pairs.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path, pairs):
    """Some right references, some wrong ones, and a second reference for one source, which does not count."""
    path = tmp_path / "corpus.tsv"
    rows = [(source, target if i % 3 else f"{target} et un roi") for i, (source, target) in enumerate(pairs[:40])]
    rows.append((pairs[1][0], "autre chose"))
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    return path


def test_scores_are_sacrebleus_on_the_first_references(toy_bundle, corpus, pairs):
    found = evaluate(toy_bundle, corpus, SearchConfig(beam=2))
    said = [t.text for t in Translator.open(toy_bundle).translate([source for source, _ in pairs[:40]], beam=2)]
    references = [line.split("\t")[1] for line in corpus.read_text().splitlines()[:40]]
    bleu = sacrebleu.corpus_bleu(said, [references])
    assert found.total.sentences == 40
    assert 50 < found.total.bleu < 100
    assert found.total.bleu == pytest.approx(bleu.score)
    assert found.total.chrf == pytest.approx(sacrebleu.corpus_chrf(said, [references]).score)
    assert found.total.exact == pytest.approx(sum(a == b for a, b in zip(said, references, strict=True)) / 40)
    assert found.total.low < found.total.bleu < found.total.high
    assert found.signatures[0].startswith("BLEU: nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp")
    assert found.signatures[1].startswith("chrF: nrefs:1|")
    assert found.provider == "CPUExecutionProvider"
    assert found.bins == ()


def test_the_command_prints_them(edge_attn_cli, toy_bundle, corpus):
    said = edge_attn_cli("evaluate", toy_bundle, corpus, "--beam", 1, "--limit", 10).stdout
    assert "beam 1, 10 distinct sources, first reference" in said
    for word in ("BLEU ", "95 % interval", "chrF ", "exact match ", "signature BLEU: nrefs:1|"):
        assert word in said


def test_as_json_they_are_the_same_numbers(edge_attn_cli, toy_bundle, corpus):
    options = ["--beam", 1, "--limit", 10, "--by-length"]
    [content] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, "--json").stdout)
    found = evaluate(toy_bundle, corpus, SearchConfig(beam=1), by_length=True, limit=10)
    assert content["total"] == found.content()["total"]
    assert content["bins"] == list(found.content()["bins"])
    assert content["signatures"] == list(found.signatures)


@pytest.mark.usefixtures("needs_torch")
def test_a_checkpoint_scores_as_its_bundle(edge_attn_cli, toy_bundle, toy_checkpoint, corpus):
    said = edge_attn_cli("evaluate", toy_checkpoint, corpus, "--against", toy_bundle, "--beam", 1, "--json").stdout
    reference, deployed = json.loads(said)
    assert reference["provider"].startswith("torch ")
    assert reference["total"] == deployed["total"]


def test_by_length_fills_bins_with_joined_neighbours(toy_bundle, pairs, toy_pairs):
    found = evaluate(toy_bundle, toy_pairs, SearchConfig(beam=1), by_length=True)
    for b in found.bins:
        real = [source for source, _ in pairs if b.first <= len(source.split()) <= b.last]
        assert b.score.sentences == len(real) + b.joined
        assert b.score.sentences <= 100 or not b.joined
    assert [(b.first, b.last) for b in found.bins] == list(BINS[: len(found.bins)])
    assert found.bins[0].joined == 0  # nothing is shorter
    assert found.bins[3].joined > 0
    assert "of them joined" in str(found)


@pytest.mark.parametrize(("low", "high"), BINS)
def test_joined_neighbours_have_the_bins_length_and_no_pair_twice(low, high):
    sizes = random.Random(5).choices(range(1, 24), k=400)
    pairs = [(" ".join(f"s{i}" for _ in range(size)), f"t{i}") for i, size in enumerate(sizes)]
    made = _joined(pairs, low, high, 50)
    assert len(made) <= 50
    used = []
    for source, target in made:
        words = source.split()
        assert low <= len(words) <= high
        parts = list(dict.fromkeys(int(word[1:]) for word in words))
        assert parts == list(range(parts[0], parts[0] + len(parts)))  # neighbours, whole, and more than one
        assert len(parts) > 1
        assert len(words) == sum(sizes[i] for i in parts)
        assert target == " ".join(f"t{i}" for i in parts)
        assert all(sizes[i] < low for i in parts)  # a pair of the bin itself is scored as it stands
        used += parts
    assert len(set(used)) == len(used)
    assert bool(made) == (low > 1)
    assert _joined(pairs, low, high, 0) == []


def test_two_models_are_set_side_by_side_and_drawn(edge_attn_cli, toy_bundle, toy_pairs, tmp_path):
    picture = tmp_path / "length.svg"
    options = ["--against", toy_bundle, "--picture", picture, "--limit", 30, "--beam", 1]
    said = edge_attn_cli("evaluate", toy_bundle, toy_pairs, *options).stdout
    assert said.count("30 distinct sources") == 2
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert len(root.findall("{*}polyline")) == 2
    texts = [text.text for text in root.findall("{*}text")]
    assert texts.count("toy-bundle.zip") == 2
    assert "1-5" in texts


def test_another_separator(toy_bundle, tmp_path, pairs):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{source}|||{target}\n" for source, target in pairs[:4]))
    assert evaluate(toy_bundle, path, separator="|||").total.sentences == 4
    with pytest.raises(UsageError, match="separator must not be empty"):
        evaluate(toy_bundle, path, separator="")


def test_a_compressed_corpus_is_read(toy_bundle, tmp_path, toy_pairs):
    import gzip

    path = tmp_path / "corpus.tsv.gz"
    path.write_bytes(gzip.compress(toy_pairs.read_bytes()))
    assert evaluate(toy_bundle, path, SearchConfig(beam=1), limit=3).total.sentences == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a cat\tun chat\na dog\n", "line 2: expected source and target with one '\\t' between them, got 1 column"),
        (b"a cat\tun chat\ta\n", "line 1: expected source and target with one '\\t' between them, got 3 columns"),
        (b"a cat\tun chat\n\xff\t\n", "line 2: not UTF-8 at byte 1"),
        (b"", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_corpus_that_is_none_is_named(edge_attn_cli, toy_bundle, tmp_path, content, said):
    path = tmp_path / "corpus.tsv"
    if content is not None:
        path.write_bytes(content)
    found = edge_attn_cli("evaluate", toy_bundle, path, code=4, said=said)
    assert str(path) in found.stderr
    assert found.stdout == ""


def test_a_picture_that_cannot_be_written_is_named(edge_attn_cli, toy_bundle, toy_pairs, tmp_path):
    path = tmp_path / "absent" / "picture.svg"
    options = ["--limit", 2, "--beam", 1, "--picture", path]
    edge_attn_cli("evaluate", toy_bundle, toy_pairs, *options, code=4, said=f"{path} cannot be written: No such file")


def test_a_model_that_is_none_is_named(toy_pairs, tmp_path):
    with pytest.raises(InputError, match="is not a bundle"):
        evaluate(tmp_path, toy_pairs)


def test_without_sacrebleu_nothing_is_tested(run_edge_attn, toy_bundle, toy_pairs):
    done = run_edge_attn("evaluate", toy_bundle, toy_pairs, absent=("sacrebleu",))
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == b"edge-attn: sacrebleu is not installed; run: pip install 'edge-attn[evaluate]'\n"


def test_sources_that_were_cut_are_counted(toy_bundle, tmp_path, pairs):
    path = tmp_path / "long.tsv"
    long = " ".join(source for source, _ in pairs)
    path.write_text(f"{long}\tun\n{pairs[0][0]}\t{pairs[0][1]}\n", encoding="utf-8")
    found = evaluate(toy_bundle, path, SearchConfig(beam=1))
    assert found.cut == 1
    assert "1 of the sources are longer than the model reads" in str(found)


def test_options_that_are_not_the_defaults_are_told(edge_attn_cli, toy_bundle, corpus):
    options = ["--limit", 10, "--beam", 2, "--min-length", 3, "--suppress", "le"]
    said = edge_attn_cli("evaluate", toy_bundle, corpus, *options).stdout
    assert "\noptions min_length 3, suppress ['le']\n" in said
    [told] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, "--json").stdout)
    assert (told["beam"], told["options"]) == (2, {"min_length": 3, "suppress": ["le"]})
    [plain] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, "--limit", 10, "--json").stdout)
    assert plain["options"] == {}
    assert "options" not in edge_attn_cli("evaluate", toy_bundle, corpus, "--limit", 10).stdout


def test_options_of_the_search_change_what_is_scored(edge_attn_cli, toy_bundle, corpus):
    options = ["--beam", 1, "--limit", 10, "--json"]
    [plain] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options).stdout)
    for more in (["--suppress", "le"], ["--sample", "--temperature", 20], ["--min-length", 15]):
        [found] = json.loads(edge_attn_cli("evaluate", toy_bundle, corpus, *options, *more).stdout)
        assert found["total"]["bleu"] < plain["total"]["bleu"]
    edge_attn_cli("evaluate", toy_bundle, corpus, "--suppress", "Hund", code=2, said="'Hund' cannot be suppressed")
