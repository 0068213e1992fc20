"""Greedy translations of validation sentences during training, and their scores."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from edge_attn.decoding.batching import search_batches
from edge_attn.decoding.options import SearchConfig
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity.metrics import chrf
from edge_attn.reference import CANDIDATES, TorchRuntime
from edge_attn.text.pipeline import Text


@dataclass(frozen=True)
class ValidationScores:
    """Scores of greedy translations of some validation sentences."""

    bleu: float | None
    """BLEU of sacreBLEU, 0 to 100. None if it is not installed."""
    chrf: float
    """chrF, 0 to 100."""
    translations: list[str]


@dataclass(frozen=True)
class ValidationSentences:
    """Validation pairs that are translated at each validation."""

    pairs: Sequence[tuple[str, str]]

    @classmethod
    def choose(cls, text: Text, pairs: Sequence[tuple[str, str]], count: int, max_tokens: int) -> ValidationSentences:
        """Choose at most `count` pairs with distinct sources of at most `max_tokens` tokens, spread over the data."""
        distinct = dict(reversed(pairs))
        short = [source for source in distinct if len(text.encode_source(source)) <= max_tokens]
        chosen = sorted(short)[:: max(1, -(-len(short) // count))] if count else []
        return cls([(source, distinct[source]) for source in chosen])

    def score(self, model: Seq2Seq, text: Text, max_length: int) -> ValidationScores | None:
        """Translate the sources greedily and score them; None without pairs.

        Args:
            model: the model, in evaluation mode.
            text: its text processing.
            max_length: maximum tokens of a translation.
        """
        if not self.pairs:
            return None
        if next(model.parameters()).is_cuda:
            model = copy.deepcopy(model).cpu()
        runtime = TorchRuntime(encoder_decoder_graphs(model, CANDIDATES, folded=False))
        sources = [text.encode_source(source) for source, _ in self.pairs]
        hypotheses = search_batches(runtime, sources, SearchConfig(beam=1, max_length=max_length))
        translations = [text.target.decode(best.tokens) for best, *_ in hypotheses]
        references = [target for _, target in self.pairs]
        return ValidationScores(_bleu(translations, references), 100 * chrf(translations, references), translations)


def _bleu(translations: Sequence[str], references: Sequence[str]) -> float | None:
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        return None
    return float(corpus_bleu(list(translations), [list(references)], force=True).score)
