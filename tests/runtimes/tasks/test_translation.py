"""The Python API: sentences in; text, score, tokens and alignment out."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE

import edge_attn
from edge_attn.decoding.decoder import teacher_force
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, InputError, UsageError
from edge_attn.runtimes.tasks import batching
from edge_attn.runtimes.tasks.translation import SourceCutWarning, Translation, Translator
from edge_attn.text.tokenizers import EOS

SENTENCE = "every good cat calls a child"
SAID = "chaque chat bon appelle un enfant"


@pytest.fixture(scope="module")
def model(toy_bundle) -> Translator:
    return edge_attn.load(toy_bundle)


def test_a_sentence_comes_back_with_its_score_tokens_and_alignment(model):
    [found] = model.translate([SENTENCE])
    assert found.text == SAID
    assert found.tokens == tuple(SAID.split())
    assert found.source_tokens == (*SENTENCE.split(), "</s>")
    assert found.finished
    assert not found.cut
    assert found.score == pytest.approx(found.log_prob / 7)
    assert found.alignment.shape == (7, 7)
    np.testing.assert_allclose(found.alignment.sum(1), 1.0, atol=1e-5)
    assert found.pharaoh() == "0-0 2-1 1-2 3-3 4-4 5-5"


def test_the_log_probability_is_what_the_steps_say(model):
    [found] = model.translate([SENTENCE], beam=3)
    source = model.text.encode_source(SENTENCE)
    target = model.text.target.encode(found.text)
    steps = [model.runtime.numpy(o["log_probs"])[0, 0] for _, o in teacher_force(model.runtime, [source], [target])]
    said = sum(step[token] for step, token in zip(steps, [*target, EOS], strict=True))
    assert found.log_prob == pytest.approx(float(said), abs=1e-4)


def test_a_model_translates_what_it_was_not_trained_on(model, toy_pairs):
    pairs = [line.split("\t") for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    found = model.translate([source for source, _ in pairs])
    right = sum(t.text == target for t, (_, target) in zip(found, pairs, strict=True))
    assert right >= 0.95 * len(pairs)


def test_the_n_best_are_ordered_and_different(model):
    [found] = model.translate([SENTENCE], beam=6, n_best=6)
    assert len(found.n_best) == 6
    assert found.n_best[0] == found
    scores = [hypothesis.score for hypothesis in found.n_best]
    assert scores == sorted(scores, reverse=True)
    assert len({hypothesis.tokens for hypothesis in found.n_best}) == 6
    assert all(hypothesis.alignment.shape == (len(hypothesis.tokens) + 1, 7) for hypothesis in found.n_best)


@pytest.mark.parametrize("beam", [1, 4])
def test_company_changes_nothing(model, toy_pairs, beam):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:40]]
    together = model.translate(sentences, beam=beam, alignments=False)
    small = model.translate(sentences[::-1], beam=beam, alignments=False, batch_tokens=1)[::-1]
    assert [t.tokens for t in together] == [t.tokens for t in small]
    np.testing.assert_allclose([t.log_prob for t in together], [t.log_prob for t in small], atol=1e-4)


@pytest.mark.parametrize("nothing", ["", " ", "\t \u3000"])
def test_nothing_is_answered_with_nothing_in_its_place(model, nothing):
    found = model.translate(["a cat", nothing, "the king"], n_best=2)
    assert [t.text for t in found] == ["un chat", "", "le roi"]
    assert found[1] == Translation("", 0.0, 0.0, (), ())
    assert found[1].pharaoh() == ""


def test_no_sentence_gives_no_translation(model):
    assert model.translate([]) == []


def test_unknown_words_are_translated_as_unknown(model):
    [found] = model.translate(["a \u2603 cat"])
    assert found.source_tokens == ("a", "<unk>", "cat", "</s>")
    assert found.finished


def test_a_string_is_not_a_list_of_sentences(model):
    with pytest.raises(UsageError, match="takes a list of sentences, got one string"):
        model.translate(SENTENCE)


def test_a_sentence_must_be_a_string(model):
    with pytest.raises(InputError, match="sentence 1 must be a string, got bytes"):
        model.translate(["a cat", b"a dog"])


def test_any_iterable_of_sentences_will_do(model):
    assert [t.text for t in model.translate(s for s in ("a cat", "a dog"))] == ["un chat", "un chien"]


def test_a_long_sentence_is_cut_with_a_warning(model):
    with pytest.warns(SourceCutWarning, match="sentence 1 has more than 20 tokens"):
        found = model.translate(["a cat", "a cat and " * 20])
    assert [t.cut for t in found] == [False, True]
    assert len(found[1].source_tokens) == 20
    assert found[1].source_tokens[-1] == "</s>"
    assert found[1].text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.translate(["a cat " + "cat " * 17])


def test_alignments_are_made_where_asked_for(model):
    [found] = model.translate([SENTENCE], alignments=False)
    assert found.alignment is None
    assert found.pharaoh() == ""


def test_what_max_length_cuts_off_is_not_finished(model):
    [found] = model.translate([SENTENCE], beam=1, max_length=2)
    assert not found.finished
    assert len(found.tokens) == 2
    assert found.alignment.shape == (2, 7)
    assert len(found.pharaoh().split()) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"beam": 2, "n_best": 3},
        {"n_best": 0},
        {"max_length": 0},
        {"length_penalty": -1.0},
        {"beam": 16},
        {"config": SearchConfig(beam=1, sample=True), "beam": 2},
        {"suppress": ["chien", "Hund"]},
        {"suppress": "chien"},
        {"prefixes": "un"},
        {"prefixes": []},
        {"prefixes": ["un", "un"]},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(model, options):
    with pytest.raises(UsageError):
        model.translate([SENTENCE], **options)


@pytest.mark.parametrize("name", ["suppress", "prefixes"])
def test_a_string_where_a_list_is_wanted_is_told_before_it_is_read(model, name):
    with pytest.raises(UsageError, match=r"translate takes a list of .*, got one string; put it in a list"):
        model.translate(["a cat"], **{name: "chat"})


@pytest.mark.parametrize("options", [{"beam": 40}, {"config": SearchConfig(suppress=(EOS,))}, {"suppress": ["</s>"]}])
def test_what_the_bundle_cannot_serve_is_refused_without_a_sentence(model, options):
    with pytest.raises(UsageError):
        model.translate([], **options)


def test_a_piece_that_begins_a_word_is_written_with_its_mark():
    model = edge_attn.load(EMBEDDED_BUNDLE)
    with pytest.raises(UsageError, match=r"'chats' cannot be suppressed: .*; a piece that begins a word begins with ▁"):
        model.translate([], suppress=["chats"])


def test_a_bundle_is_loaded_by_any_kind_of_path_and_from_a_folder(toy_bundle, tmp_path):
    import zipfile

    with zipfile.ZipFile(toy_bundle) as archive:
        archive.extractall(tmp_path)
    for path in (str(toy_bundle), tmp_path):
        assert edge_attn.load(path, threads=1).translate(["a cat"])[0].text == "un chat"


def test_only_a_bundle_is_loaded(toy_checkpoint, tmp_path, toy_bundle):
    for path in (toy_checkpoint, tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="is not a bundle"):
            edge_attn.load(path)
    with pytest.raises(UsageError, match="unknown runtime 'tvm'; known: ort-cpu"):
        edge_attn.load(toy_bundle, "tvm")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        edge_attn.load(toy_bundle, threads=0)
    with pytest.raises(UsageError, match="the runtime torch runs a checkpoint"):
        edge_attn.load(toy_bundle, "torch")


@pytest.mark.usefixtures("needs_torch")
def test_a_checkpoint_says_on_torch_what_its_bundle_says(model, toy_checkpoint, toy_pairs):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:20]]
    reference = Translator.open(toy_checkpoint)
    assert reference.runtime.provider.startswith("torch ")
    expected, found = reference.translate(sentences), model.translate(sentences)
    assert [t.tokens for t in found] == [t.tokens for t in expected]
    np.testing.assert_allclose([t.score for t in found], [t.score for t in expected], atol=1e-4)


def test_a_checkpoint_on_an_unknown_runtime_is_refused(toy_checkpoint):
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        Translator.open(toy_checkpoint, "tvm")


def test_a_translation_is_a_value():
    one = Translation("a", -1.0, -2.0, ("a",), ("b", "</s>"), np.ones((2, 2)))
    assert one == dataclasses.replace(one, alignment=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.text = "b"


@pytest.mark.parametrize(("most", "largest"), [(None, 8), (3, 3)])
def test_batches_are_of_like_length_and_hold_every_sentence_once(most, largest):
    sources = {i: [0] * (1 + i % 7) for i in range(50)}
    batches = list(batching.by_length(sources, 12, most))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(len(batch) * max(len(sources[i]) for i in batch) <= 12 for batch in batches)
    assert max(map(len, batches)) == largest
    assert list(batching.by_length({3: [0] * 40}, 12, most)) == [[3]]


def test_the_search_defaults_are_those_of_the_configuration(model):
    [found] = model.translate([SENTENCE])
    config = SearchConfig()
    ((_, same),) = model.translate_iter([SENTENCE], config, True)
    assert found == same


def test_options_by_themselves_go_before_those_of_the_configuration(model):
    config = SearchConfig(beam=3, n_best=3, length_penalty_kind="none")
    [found] = model.translate([SENTENCE], n_best=2, config=config)
    assert len(found.n_best) == 2
    assert found.score == found.log_prob


def test_a_translation_begins_with_its_prefix(model):
    sentences, prefixes = ["a cat", "a dog", "", "the king"], ["le chat", "", "un", "un roi rouge"]
    found = model.translate(sentences, prefixes=prefixes)
    assert [t.text for t in found[1:3]] == ["un chien", ""]
    assert all(t.text.startswith(prefix) for t, prefix in zip(found, prefixes, strict=True) if t.text)
    assert [model.translate([s], prefixes=[p])[0].tokens for s, p in zip(sentences, prefixes, strict=True)] == [
        t.tokens for t in found
    ]
    assert found[0].alignment.shape == (len(found[0].tokens) + 1, 3)


@pytest.mark.parametrize(
    ("prefix", "options", "said"),
    [
        ("un Hund", {}, "prefix 1: the target vocabulary has no 'Hund'"),
        ("un chat noir et un roi", {"max_length": 5}, "prefix 1: 6 tokens, and max_length leaves room for 5"),
        (b"un", {}, "prefix 1 must be a string, got bytes"),
    ],
)
def test_a_prefix_that_the_model_cannot_say_is_refused(model, prefix, options, said):
    if isinstance(prefix, str):
        prefix = prefix.replace("noir", "rouge")
    with pytest.raises(InputError, match=said):
        model.translate(["a cat", "a dog"], prefixes=["un", prefix], **options)


def test_what_is_suppressed_does_not_come(model):
    found = model.translate([SENTENCE, "a cat"], beam=5, n_best=5, suppress=["chat", "<unk>"])
    assert not any("chat" in h.tokens for t in found for h in t.n_best)
    assert all(h.finished for t in found for h in t.n_best[:1])


def test_samples_are_of_the_seed_and_the_sentence(model):
    config = SearchConfig(beam=1, sample=True, n_best=6, temperature=3.0, seed=4)
    first, second = model.translate([SENTENCE, "the king"], config=config)
    assert len(first.n_best) == 6
    assert len({h.tokens for h in first.n_best}) > 1
    again = model.translate(["a dog", "the king", SENTENCE], config=config)
    assert [h.tokens for h in again[2].n_best] == [h.tokens for h in first.n_best]
    assert [h.tokens for h in again[1].n_best] == [h.tokens for h in second.n_best]


@pytest.mark.usefixtures("needs_torch")
def test_every_option_gives_on_torch_what_it_gives_on_the_bundle(model, toy_checkpoint):
    reference = Translator.open(toy_checkpoint)
    sentences = [SENTENCE, "the king", "a red cat sees a dog"]
    for config in (
        SearchConfig(4, 4, 0.6, 20, length_penalty_kind="wu", coverage_penalty=0.2, no_repeat_ngram=2),
        SearchConfig(2, 2, max_length=20, min_length=8, repetition_penalty=1.3),
        SearchConfig(4, 4, max_length=20, groups=2, diversity=1.0),
        SearchConfig(2, max_length=20, alternatives=3),
        SearchConfig(1, 4, max_length=20, sample=True, temperature=2.0, seed=9),
    ):
        expected, found = (one.translate(sentences, config=config) for one in (reference, model))
        assert [[h.tokens for h in t.n_best] for t in found] == [[h.tokens for h in t.n_best] for t in expected]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose([h.score for h in a.n_best], [h.score for h in b.n_best], atol=1e-4)


def test_alternatives_differ_where_the_prefix_ends(model):
    [found] = model.translate(["a cat"], prefixes=["un"], config=SearchConfig(beam=3, alternatives=4))
    assert len(found.n_best) == 4
    assert found.n_best[0].tokens == ("un", "chat")
    assert len({(*h.tokens, "</s>")[1] for h in found.n_best}) == 4
    assert all(h.tokens[0] == "un" for h in found.n_best)
