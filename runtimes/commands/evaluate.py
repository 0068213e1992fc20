"""`edge-attn evaluate`: BLEU, chrF and BLEU by source length."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import MissingExtraError, UsageError
from edge_attn.runtimes.commands.corpus_scores import CorpusScore, Evaluation, EvaluationReport, LengthBin
from edge_attn.runtimes.commands.plots import check_picture, length_svg, write_svg
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.text.corpus import read_pairs
from edge_attn.versions import require

BINS = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 30), (31, 40), (41, 60))
"""First and last number of source words, separated by white space, of each bin."""
BIN_SIZE = 100
"""Number of sentences to which joined neighbors fill a bin."""
RESAMPLES = 1000
"""Bootstrap samples of BLEU's interval."""

Pair = tuple[str, str]


def evaluate(
    model: Path,
    corpus: Path,
    config: SearchConfig | None = None,
    separator: str = "\t",
    by_length: bool = False,
    against: Path | None = None,
    picture: Path | None = None,
    limit: int | None = None,
    suppress: Sequence[str] = (),
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
) -> EvaluationReport:
    """Score `model` on the first reference of each distinct source of `corpus`.

    Args:
        model: a bundle, or a checkpoint, which runs on torch.
        corpus: file of pairs, one per line; .gz is decompressed.
        config: search options.
        separator: text between source and target.
        by_length: score by source length too.
        against: second model, evaluated in the same way.
        picture: output file for BLEU by source length as SVG; implies `by_length`.
        limit: maximum number of distinct sources.
        suppress: entries of the target vocabulary that are never generated.
        runtime: runtime of a bundle.
        options: options of the runtime.

    Raises:
        InputError: a line of the corpus is not a pair of sentences, or the picture cannot be written.
        UsageError: the separator is empty, or the model does not support a search option.
        MissingExtraError: sacrebleu is not installed.
    """
    if not separator:
        raise UsageError("`separator` must not be empty")
    if picture is not None:
        check_picture(picture)
    references: dict[str, str] = {}
    for source, target in read_pairs(corpus, separator):
        references.setdefault(source, target)
    pairs = list(references.items())[:limit]
    by_length = by_length or picture is not None
    metrics = _metrics()
    evaluations = []
    for path in (model, against) if against else (model,):
        translator = Translator.open(path, runtime, options)
        validated = translator.validate_config(config or SearchConfig(), suppress)
        evaluations.append(_evaluate(str(path), translator, validated, pairs, by_length, *metrics))
    if picture is not None:
        write_svg(picture, length_svg(evaluations))
    return EvaluationReport(tuple(evaluations))


def _evaluate(
    name: str, translator: Translator, config: SearchConfig, pairs: list[Pair], by_length: bool, bleu: Any, chrf: Any
) -> Evaluation:
    start = time.monotonic()
    translations = _translate(translator, pairs, config)
    seconds = time.monotonic() - start
    hypotheses = [translation.text for translation in translations]
    bins = []
    for first, last in BINS if by_length else ():
        inside = [i for i, (source, _) in enumerate(pairs) if first <= len(source.split()) <= last]
        joined = _join_neighbors(pairs, first, last, BIN_SIZE - len(inside))
        if inside or joined:
            bin_hypotheses = [hypotheses[i] for i in inside]
            bin_hypotheses += [translation.text for translation in _translate(translator, joined, config)]
            score = _score(bleu, chrf, bin_hypotheses, [pairs[i] for i in inside] + joined)
            bins.append(LengthBin(first, last, len(joined), score))
    total = _score(bleu, chrf, hypotheses, pairs)
    return Evaluation(
        model=name,
        provider=translator.runtime.provider,
        beam=config.beam,
        total=total,
        bins=tuple(bins),
        signatures=(f"BLEU: {bleu.get_signature()}", f"chrF: {chrf.get_signature()}"),
        seconds=seconds,
        cut=sum(translation.cut for translation in translations),
        options=_changed_options(translator, config),
    )


def _changed_options(translator: Translator, config: SearchConfig) -> dict[str, Any]:
    """Return the options other than `beam` that differ from their default; `suppress` as text."""
    defaults = asdict(SearchConfig())
    changed = {name: value for name, value in vars(config).items() if name != "beam" and value != defaults[name]}
    if config.suppress:
        changed["suppress"] = translator.text.target.pieces(config.suppress)
    return changed


def _translate(translator: Translator, pairs: Sequence[Pair], config: SearchConfig) -> list[Translation]:
    by_index = dict(translator.translate_batches([source for source, _ in pairs], config, alignments=False))
    return [by_index[i] for i in range(len(pairs))]


def _join_neighbors(pairs: Sequence[Pair], first: int, last: int, limit: int) -> list[Pair]:
    """Return up to `limit` pairs of `first` to `last` source words, each joined from neighbors in `pairs`.

    A pair is used once at most. A pair of `first` words or more is not used, because it is scored in a bin itself.
    """
    joined: list[Pair] = []
    run: list[Pair] = []
    words = 0
    for pair in pairs:
        if len(joined) >= limit:
            break
        size = len(pair[0].split())
        if size >= first or words + size > last:
            run, words = [], 0
        if size >= first:
            continue
        run.append(pair)
        words += size
        if words >= first:
            joined.append((" ".join(source for source, _ in run), " ".join(target for _, target in run)))
            run, words = [], 0
    return joined


def _metrics() -> tuple[Any, Any]:
    """Return sacrebleu's BLEU and chrF."""
    try:
        from sacrebleu import BLEU, CHRF
    except ImportError as error:
        require("sacrebleu")  # does it not load, or is it absent
        raise MissingExtraError("sacrebleu", "evaluate") from error
    require("sacrebleu")
    return BLEU(), CHRF()


def _score(bleu: Any, chrf: Any, hypotheses: Sequence[str], pairs: Sequence[Pair]) -> CorpusScore:
    references = [target for _, target in pairs]
    result = bleu.corpus_score(hypotheses, [references], n_bootstrap=RESAMPLES)
    mean, half = float(result._mean), float(result._ci)
    return CorpusScore(
        sentences=len(pairs),
        bleu=float(result.score),
        low=mean - half,
        high=mean + half,
        chrf=float(chrf.corpus_score(hypotheses, [references]).score),
        exact=sum(a == b for a, b in zip(hypotheses, references, strict=True)) / len(pairs),
    )
