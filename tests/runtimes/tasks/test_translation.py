"""The Python API: from sentences to text, score, tokens and alignment."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE

import edge_attn
from edge_attn.decoding.decoder import teacher_force
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, InputError, UsageError
from edge_attn.runtimes.tasks.translation import SourceCutWarning, Translation, Translator
from edge_attn.text.tokenizers import EOS

SENTENCE = "every good cat calls a child"
TRANSLATION = "chaque chat bon appelle un enfant"


@pytest.fixture(scope="module")
def model(toy_bundle) -> Translator:
    return edge_attn.load(toy_bundle)


def test_translation_has_score_tokens_and_alignment(model):
    [translation] = model.translate([SENTENCE])
    assert translation.text == TRANSLATION
    assert translation.tokens == tuple(TRANSLATION.split())
    assert translation.source_tokens == (*SENTENCE.split(), "</s>")
    assert translation.finished
    assert not translation.cut
    assert translation.score == pytest.approx(translation.log_prob / 7)
    assert translation.alignment.shape == (7, 7)
    np.testing.assert_allclose(translation.alignment.sum(1), 1.0, atol=1e-5)
    assert translation.pharaoh() == "0-0 2-1 1-2 3-3 4-4 5-5"


def test_log_probability_is_the_sum_of_the_steps(model):
    [translation] = model.translate([SENTENCE], beam=3)
    source = model.text.encode_source(SENTENCE)
    target = model.text.target.encode(translation.text)
    steps = [model.runtime.numpy(o["log_probs"])[0, 0] for _, o in teacher_force(model.runtime, [source], [target])]
    total = sum(step[token] for step, token in zip(steps, [*target, EOS], strict=True))
    assert translation.log_prob == pytest.approx(float(total), abs=1e-4)


def test_model_translates_held_out_sentences(model, toy_pairs):
    pairs = [line.split("\t") for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    translations = model.translate([source for source, _ in pairs])
    exact = sum(t.text == target for t, (_, target) in zip(translations, pairs, strict=True))
    assert exact >= 0.95 * len(pairs)


def test_n_best_are_ordered_and_different(model):
    [translation] = model.translate([SENTENCE], beam=6, n_best=6)
    assert len(translation.n_best) == 6
    assert translation.n_best[0] == translation
    scores = [hypothesis.score for hypothesis in translation.n_best]
    assert scores == sorted(scores, reverse=True)
    assert len({hypothesis.tokens for hypothesis in translation.n_best}) == 6
    assert all(hypothesis.alignment.shape == (len(hypothesis.tokens) + 1, 7) for hypothesis in translation.n_best)


@pytest.mark.parametrize("beam", [1, 4])
def test_batches_do_not_change_translations(model, toy_pairs, beam):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:40]]
    together = model.translate(sentences, beam=beam, alignments=False)
    small = model.translate(sentences[::-1], beam=beam, alignments=False, batch_tokens=1)[::-1]
    assert [t.tokens for t in together] == [t.tokens for t in small]
    np.testing.assert_allclose([t.log_prob for t in together], [t.log_prob for t in small], atol=1e-4)


@pytest.mark.parametrize("empty", ["", " ", "\t \u3000"])
def test_empty_sentence_has_an_empty_translation(model, empty):
    translations = model.translate(["a cat", empty, "the king"], n_best=2)
    assert [t.text for t in translations] == ["un chat", "", "le roi"]
    assert translations[1] == Translation("", 0.0, 0.0, (), ())
    assert translations[1].pharaoh() == ""


def test_no_sentences_return_no_translations(model):
    assert model.translate([]) == []


def test_unknown_word_is_the_unknown_token(model):
    [translation] = model.translate(["a \u2603 cat"])
    assert translation.source_tokens == ("a", "<unk>", "cat", "</s>")
    assert translation.finished


def test_string_instead_of_sentences_is_refused(model):
    with pytest.raises(UsageError, match="takes a list of sentences, got one string"):
        model.translate(SENTENCE)


def test_sentence_of_bytes_is_refused(model):
    with pytest.raises(InputError, match="sentence 1 must be a string, got bytes"):
        model.translate(["a cat", b"a dog"])


def test_sentences_may_be_any_iterable(model):
    assert [t.text for t in model.translate(s for s in ("a cat", "a dog"))] == ["un chat", "un chien"]


def test_long_sentence_is_truncated_with_a_warning(model):
    with pytest.warns(SourceCutWarning, match="sentence 1: only the first 19 of 60 tokens were translated"):
        translations = model.translate(["a cat", "a cat and " * 20])
    assert [t.cut for t in translations] == [False, True]
    assert len(translations[1].source_tokens) == 20
    assert translations[1].source_tokens[-1] == "</s>"
    assert translations[1].text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.translate(["a cat " + "cat " * 17])


def test_alignments_can_be_left_out(model):
    [translation] = model.translate([SENTENCE], alignments=False)
    assert translation.alignment is None
    assert translation.pharaoh() == ""


def test_translation_truncated_by_max_length_is_not_finished(model):
    [translation] = model.translate([SENTENCE], beam=1, max_length=2)
    assert not translation.finished
    assert len(translation.tokens) == 2
    assert translation.alignment.shape == (2, 7)
    assert len(translation.pharaoh().split()) == 2


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
def test_invalid_option_is_refused(model, options):
    with pytest.raises(UsageError):
        model.translate([SENTENCE], **options)


@pytest.mark.parametrize("name", ["suppress", "prefixes"])
def test_string_instead_of_a_list_is_refused(model, name):
    with pytest.raises(UsageError, match=r"translate takes a list of .*, got one string; put it in a list"):
        model.translate(["a cat"], **{name: "chat"})


@pytest.mark.parametrize("options", [{"beam": 40}, {"config": SearchConfig(suppress=(EOS,))}, {"suppress": ["</s>"]}])
def test_unsupported_option_is_refused_without_sentences(model, options):
    with pytest.raises(UsageError):
        model.translate([], **options)


def test_error_explains_the_mark_of_word_beginnings():
    model = edge_attn.load(EMBEDDED_BUNDLE)
    with pytest.raises(UsageError, match=r"'chats' cannot be suppressed: .*; a piece that begins a word begins with ▁"):
        model.translate([], suppress=["chats"])


def test_load_takes_strings_paths_and_folders(toy_bundle, tmp_path):
    import zipfile

    with zipfile.ZipFile(toy_bundle) as archive:
        archive.extractall(tmp_path)
    for path in (str(toy_bundle), tmp_path):
        assert edge_attn.load(path, threads=1).translate(["a cat"])[0].text == "un chat"


def test_load_refuses_other_files_runtimes_and_threads(toy_checkpoint, tmp_path, toy_bundle):
    for path in (toy_checkpoint, tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="is not a bundle"):
            edge_attn.load(path)
    with pytest.raises(UsageError, match="unknown runtime 'tvm'; known: ort-cpu"):
        edge_attn.load(toy_bundle, "tvm")
    with pytest.raises(UsageError, match="`threads` must be at least 1"):
        edge_attn.load(toy_bundle, threads=0)
    with pytest.raises(UsageError, match="the runtime torch runs a checkpoint"):
        edge_attn.load(toy_bundle, "torch")


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_and_bundle_translate_alike(model, toy_checkpoint, toy_pairs):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:20]]
    reference = Translator.open(toy_checkpoint)
    assert reference.runtime.provider.startswith("torch ")
    expected, translations = reference.translate(sentences), model.translate(sentences)
    assert [t.tokens for t in translations] == [t.tokens for t in expected]
    np.testing.assert_allclose([t.score for t in translations], [t.score for t in expected], atol=1e-4)


def test_checkpoint_on_an_unknown_runtime_is_refused(toy_checkpoint):
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        Translator.open(toy_checkpoint, "tvm")


def test_translation_is_a_frozen_value():
    translation = Translation("a", -1.0, -2.0, ("a",), ("b", "</s>"), np.ones((2, 2)))
    assert translation == dataclasses.replace(translation, alignment=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        translation.text = "b"


def test_search_defaults_are_those_of_the_config(model):
    [translation] = model.translate([SENTENCE])
    config = SearchConfig()
    ((_, same),) = model.translate_batches([SENTENCE], config, True)
    assert translation == same


def test_single_options_override_the_config(model):
    config = SearchConfig(beam=3, n_best=3, length_penalty_kind="none")
    [translation] = model.translate([SENTENCE], n_best=2, config=config)
    assert len(translation.n_best) == 2
    assert translation.score == translation.log_prob


def test_translation_begins_with_its_prefix(model):
    sentences, prefixes = ["a cat", "a dog", "", "the king"], ["le chat", "", "un", "un roi rouge"]
    translations = model.translate(sentences, prefixes=prefixes)
    assert [t.text for t in translations[1:3]] == ["un chien", ""]
    assert all(t.text.startswith(prefix) for t, prefix in zip(translations, prefixes, strict=True) if t.text)
    assert [model.translate([s], prefixes=[p])[0].tokens for s, p in zip(sentences, prefixes, strict=True)] == [
        t.tokens for t in translations
    ]
    assert translations[0].alignment.shape == (len(translations[0].tokens) + 1, 3)


@pytest.mark.parametrize(
    ("prefix", "options", "error"),
    [
        ("un Hund", {}, "prefix 1: the target vocabulary has no 'Hund'"),
        ("un chat noir et un roi", {"max_length": 5}, "prefix 1: 6 tokens, and `max_length` leaves room for 5"),
        (b"un", {}, "prefix 1 must be a string, got bytes"),
    ],
)
def test_invalid_prefix_is_refused(model, prefix, options, error):
    if isinstance(prefix, str):
        prefix = prefix.replace("noir", "rouge")
    with pytest.raises(InputError, match=error):
        model.translate(["a cat", "a dog"], prefixes=["un", prefix], **options)


def test_suppressed_tokens_never_appear(model):
    translations = model.translate([SENTENCE, "a cat"], beam=5, n_best=5, suppress=["chat", "<unk>"])
    assert not any("chat" in h.tokens for t in translations for h in t.n_best)
    assert all(h.finished for t in translations for h in t.n_best[:1])


def test_samples_depend_on_seed_and_sentence(model):
    config = SearchConfig(beam=1, sample=True, n_best=6, temperature=3.0, seed=4)
    first, second = model.translate([SENTENCE, "the king"], config=config)
    assert len(first.n_best) == 6
    assert len({h.tokens for h in first.n_best}) > 1
    again = model.translate(["a dog", "the king", SENTENCE], config=config)
    assert [h.tokens for h in again[2].n_best] == [h.tokens for h in first.n_best]
    assert [h.tokens for h in again[1].n_best] == [h.tokens for h in second.n_best]


@pytest.mark.usefixtures("needs_torch")
def test_every_option_agrees_on_torch_and_the_bundle(model, toy_checkpoint):
    reference = Translator.open(toy_checkpoint)
    sentences = [SENTENCE, "the king", "a red cat sees a dog"]
    for config in (
        SearchConfig(4, 4, 0.6, 20, length_penalty_kind="wu", coverage_penalty=0.2, no_repeat_ngram=2),
        SearchConfig(2, 2, max_length=20, min_length=8, repetition_penalty=1.3),
        SearchConfig(4, 4, max_length=20, groups=2, diversity=1.0),
        SearchConfig(2, max_length=20, alternatives=3),
        SearchConfig(1, 4, max_length=20, sample=True, temperature=2.0, seed=9),
    ):
        expected, translations = (m.translate(sentences, config=config) for m in (reference, model))
        assert [[h.tokens for h in t.n_best] for t in translations] == [[h.tokens for h in t.n_best] for t in expected]
        for a, b in zip(translations, expected, strict=True):
            np.testing.assert_allclose([h.score for h in a.n_best], [h.score for h in b.n_best], atol=1e-4)


def test_alternatives_differ_after_the_prefix(model):
    [translation] = model.translate(["a cat"], prefixes=["un"], config=SearchConfig(beam=3, alternatives=4))
    assert len(translation.n_best) == 4
    assert translation.n_best[0].tokens == ("un", "chat")
    assert len({(*h.tokens, "</s>")[1] for h in translation.n_best}) == 4
    assert all(h.tokens[0] == "un" for h in translation.n_best)


def test_model_is_closed_at_the_end_of_its_block(toy_bundle):
    with edge_attn.load(toy_bundle) as model:
        assert model.translate(["the king"])[0].text == "le roi"
    model.close()
    for use in (
        lambda: model.translate(["the king"]),
        lambda: model.translate_iter(["the king"]),
        lambda: model.score([("the king", "le roi")]),
    ):
        with pytest.raises(UsageError, match="this model was closed; load it again"):
            use()


def test_closed_model_frees_its_sessions(toy_bundle):
    model = edge_attn.load(toy_bundle)
    sessions = [weakref.ref(session) for session in model.runtime._sessions.values()]
    model.close()
    gc.collect()
    assert [session() for session in sessions] == [None, None]


@pytest.mark.parametrize("window", [1, 3, 256])
def test_stream_has_the_translations_of_a_list_in_order(model, toy_pairs, window):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:8]]
    expected = model.translate([*sentences, ""], beam=2, n_best=2)
    stream = model.translate_iter((f"{line}\n" for line in [*sentences, ""]), beam=2, n_best=2, window=window)
    translations = list(stream)
    assert [t.text for t in translations] == [t.text for t in expected]
    assert [len(t.n_best) for t in translations] == [len(t.n_best) for t in expected]


def test_stream_reads_one_window_ahead(model):
    read: list[int] = []

    def sentences() -> Iterator[str]:
        for i in itertools.count():
            read.append(i)
            yield "the king"

    stream = model.translate_iter(sentences(), beam=1, window=4)
    assert read == []
    assert next(stream).text == "le roi"
    assert read == [0, 1, 2, 3]


def test_stream_checks_options_before_it_reads(model):
    unread = iter(["the king"])
    for options, error in (
        ({"beam": 0}, "`beam` must be at least 1"),
        ({"window": 0}, "`window` must be at least 1, got 0"),
        ({"suppress": ["Hund"]}, "'Hund' cannot be suppressed"),
    ):
        with pytest.raises(UsageError, match=error):
            model.translate_iter(unread, **options)
    with pytest.raises(UsageError, match="got one string; put it in a list"):
        model.translate_iter("the king")
    assert list(unread) == ["the king"]


def test_stream_yields_what_precedes_an_invalid_sentence(model):
    stream = model.translate_iter(["the king", "a cat", None], beam=1, window=2)
    assert [next(stream).text, next(stream).text] == ["le roi", "un chat"]
    with pytest.raises(InputError, match="sentence 2 must be a string, got NoneType"):
        next(stream)


def test_stream_warns_of_a_cut_sentence_by_its_number(model):
    with pytest.warns(SourceCutWarning, match="sentence 2: only the first 19 of 60 tokens were translated"):
        assert len(list(model.translate_iter(["a cat", "a cat", "a cat " * 30], beam=1, window=2))) == 3


def test_eight_threads_share_one_model(model, toy_pairs):
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()]
    expected = [t.text for t in model.translate(sentences, beam=2)]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: model.translate(sentences[i::8], beam=2), range(8)))
        single = list(pool.map(lambda sentence: model.translate([sentence], beam=2)[0].text, sentences))
    assert single == expected
    assert [parts[i % 8][i // 8].text for i in range(len(sentences))] == expected


def test_coroutines_share_one_model(model):
    async def translate() -> list[str]:
        calls = [asyncio.to_thread(model.translate, [text], beam=2) for text in ("the king", "a cat", SENTENCE) * 4]
        return [translations[0].text for translations in await asyncio.gather(*calls)]

    assert asyncio.run(translate()) == ["le roi", "un chat", TRANSLATION] * 4
