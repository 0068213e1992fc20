"""The embedded English-French model agrees with its model card, and its bundle with torch."""

from __future__ import annotations

import re

import pytest
from paths import SHARED

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.runtimes.commands.demo import BUNDLE, CHECKPOINT, SENTENCES
from edge_attn.runtimes.commands.evaluate import evaluate
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.runtimes.verification.verify import verify
from edge_attn.text.corpus import read_pairs

DATA = SHARED / "data" / "tatoeba-en-fr"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def test_embedded_bundle_verifies_on_this_machine():
    report = verify(BUNDLE, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds", str(report)
    assert report.sentences >= 64


def test_embedded_bundle_translates():
    translations = Translator.open(BUNDLE).translate(["I am cold.", *SENTENCES])
    assert "froid" in translations[0].text
    for translation in translations:
        assert translation.finished
        assert translation.alignment is not None
        assert translation.alignment.sum(1) == pytest.approx(1, abs=1e-5)


def test_checkpoint_and_bundle_have_the_same_weights(needs_torch):
    import hashlib

    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert Bundle.open(BUNDLE).manifest.provenance["checkpoint_sha256"] == digest


@pytest.mark.slow
@pytest.mark.shared
@needs_data
def test_first_1000_test_sentences_agree_with_torch(needs_torch, tmp_path):
    sources = list(dict.fromkeys(source for source, _ in read_pairs(DATA / "test.tsv.gz")))[:1000]
    lines = tmp_path / "sources.txt"
    lines.write_text("\n".join(sources) + "\n", encoding="utf-8")
    report = verify(BUNDLE, reference=CHECKPOINT, sentences=lines, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds", str(report)
    assert report.sentences == 1000
    values = {f"{m.level} {m.name}": m.value for level in report.levels for m in level.measurements}
    assert values["L2 log_prob"] <= 1e-4
    assert values["L3 tokens greedy"] == values["L3 n_best beam"] == 0
    assert values["L1 alignment"] <= 1e-5
    assert values["L5 tokens alone"] == values["L5 tokens batched"] == values["L5 tokens shuffled"] == 0


@pytest.mark.slow
@pytest.mark.shared
@needs_data
def test_bleu_is_that_of_the_model_card():
    claimed = re.search(r"BLEU (\d+\.\d+)", Bundle.open(BUNDLE).read("MODEL_CARD.md").decode())
    assert claimed is not None
    report = evaluate(BUNDLE, DATA / "test.tsv.gz", SearchConfig(), options=RuntimeOptions(threads=1))
    total = report.evaluations[0].total
    assert total.sentences == 2367
    assert total.bleu == pytest.approx(float(claimed[1]), abs=0.05)
