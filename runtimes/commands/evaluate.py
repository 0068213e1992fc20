"""`edge-attn evaluate`: BLEU, chrF and BLEU by source length."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import MissingExtraError, UsageError
from edge_attn.progress import stage, stages, track
from edge_attn.runtimes.commands.arguments import check_model, check_model_and_corpus
from edge_attn.runtimes.commands.corpus_scores import Comparison, CorpusScore, Evaluation, EvaluationReport, LengthBin
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

REFERENCES = ("first", "all")
"""References of a source that its translation is compared with."""

Pair: TypeAlias = tuple[str, str]
References: TypeAlias = Mapping[str, tuple[str, ...]]
"""References by source."""


@stages("evaluate")
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
    references: str = "first",
    columns: Sequence[int] = (),
) -> EvaluationReport:
    """Score `model` on the distinct sources of `corpus`.

    Args:
        model: a bundle, or a checkpoint, which runs on torch.
        corpus: file of pairs, one per line; .gz is decompressed.
        config: search options.
        separator: text between source and target.
        by_length: score by source length too.
        against: second model, evaluated in the same way and compared with the first one by a paired bootstrap test.
        picture: output file for BLEU by source length as SVG; implies `by_length`.
        limit: maximum number of distinct sources.
        suppress: entries of the target vocabulary that are never generated.
        runtime: runtime of a bundle.
        options: options of the runtime.
        references: `first` scores with the first reference of each source, `all` with all of them.
        columns: columns of source and target, as for `iter_pairs`.

    Raises:
        InputError: a model is missing, a line of the corpus is not a pair, or the picture cannot be written.
        UsageError: the separator is empty, `references` is neither, the model and the corpus were exchanged, or the
            model does not support a search option.
        MissingExtraError: sacrebleu is not installed.
    """
    if not separator:
        raise UsageError("`separator` must not be empty")
    if references not in REFERENCES:
        raise UsageError(f"`references` must be one of {', '.join(REFERENCES)}, got {references!r}")
    if picture is not None:
        check_picture(picture)
    check_model_and_corpus(model, corpus)
    models = (model, against) if against else (model,)
    for path in models:
        check_model(path)
    metrics = _metrics()
    corpus_references = _read_references(corpus, separator, columns, limit)
    by_length = by_length or picture is not None
    hypotheses: list[list[str]] = []
    evaluations = []
    for path in models:
        with Translator.open(path, runtime, options) as translator:
            validated = translator.validate_config(config or SearchConfig(), suppress)
            stage(f"translate with {path}")
            evaluation, texts = _evaluate(
                str(path), translator, validated, corpus_references, references, by_length, *metrics
            )
        evaluations.append(evaluation)
        hypotheses.append(texts)
    if against:
        used = _used(corpus_references, references)
        stage("compare both models on resampled sentences")
        evaluations[1] = dataclasses.replace(evaluations[1], comparison=_compare(hypotheses, used, *metrics))
    if picture is not None:
        write_svg(picture, length_svg(evaluations))
    return EvaluationReport(tuple(evaluations))


def _read_references(corpus: Path, separator: str, columns: Sequence[int], limit: int | None) -> References:
    """Return the references of each distinct source, in the order of the file, each of them once."""
    references: dict[str, dict[str, None]] = {}
    for source, target in read_pairs(corpus, separator, columns):
        references.setdefault(source, {})[target] = None
    return {source: tuple(targets) for source, targets in itertools.islice(references.items(), limit)}


def _used(references: References, which: str) -> list[tuple[str, ...]]:
    """Return the references of each source that are compared with its translation."""
    return [targets if which == "all" else targets[:1] for targets in references.values()]


def _evaluate(
    name: str,
    translator: Translator,
    config: SearchConfig,
    references: References,
    which: str,
    by_length: bool,
    bleu: Any,
    chrf: Any,
) -> tuple[Evaluation, list[str]]:
    """Return the scores of a model, and its translations."""
    used = _used(references, which)
    pairs = [(source, targets[0]) for source, targets in references.items()]
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
            bin_references = [used[i] for i in inside] + [(target,) for _, target in joined]
            bins.append(LengthBin(first, last, len(joined), _score(bleu, chrf, bin_hypotheses, bin_references)))
    stage("compute BLEU, its interval and chrF")
    total = _score(bleu, chrf, hypotheses, used)
    count = sum(map(len, used))
    evaluation = Evaluation(
        model=name,
        provider=translator.runtime.provider,
        beam=config.beam,
        total=total,
        bins=tuple(bins),
        signatures=(f"BLEU: {bleu.get_signature()}", f"chrF: {chrf.get_signature()}"),
        seconds=seconds,
        cut=sum(translation.cut for translation in translations),
        options=_changed_options(translator, config),
        references=which,
        reference_count=count,
        unused_references=sum(map(len, references.values())) - count,
    )
    return evaluation, hypotheses


def _changed_options(translator: Translator, config: SearchConfig) -> dict[str, Any]:
    """Return the options other than `beam` that differ from their default; `suppress` as text."""
    defaults = asdict(SearchConfig())
    changed = {name: value for name, value in vars(config).items() if name != "beam" and value != defaults[name]}
    if config.suppress:
        changed["suppress"] = translator.text.target.pieces(config.suppress)
    return changed


def _translate(translator: Translator, pairs: Sequence[Pair], config: SearchConfig) -> list[Translation]:
    translations = translator.translate_batches([source for source, _ in pairs], config, alignments=False)
    by_index = dict(track(translations, len(pairs), lambda _: 1))
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


def _streams(references: Sequence[tuple[str, ...]]) -> Any:
    """Return sacrebleu's form of references: the first one of each sentence, the second one, ...; None where absent."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def _score(bleu: Any, chrf: Any, hypotheses: Sequence[str], references: Sequence[tuple[str, ...]]) -> CorpusScore:
    streams = _streams(references)
    result = bleu.corpus_score(hypotheses, streams, n_bootstrap=RESAMPLES)
    mean, half = float(result._mean), float(result._ci)
    return CorpusScore(
        sentences=len(references),
        bleu=float(result.score),
        low=mean - half,
        high=mean + half,
        chrf=float(chrf.corpus_score(hypotheses, streams).score),
        exact=sum(a in b for a, b in zip(hypotheses, references, strict=True)) / len(references),
    )


def _compare(texts: Sequence[list[str]], references: Sequence[tuple[str, ...]], bleu: Any, chrf: Any) -> Comparison:
    """Return the paired bootstrap test of sacrebleu (`--paired-bs`) of two models on the same sentences."""
    from sacrebleu.significance import PairedTest

    systems: list[tuple[str, Sequence[str]]] = list(zip(("first", "second"), texts, strict=True))
    test = PairedTest(systems, {"BLEU": bleu, "chrF": chrf}, _streams(references), "bs", RESAMPLES)
    results: dict[str, Any] = {name[:4]: scores for name, scores in test()[1].items()}  # chrF is named chrF2 there
    (bleu_difference, bleu_p), (chrf_difference, chrf_p) = (_difference(*results[name]) for name in ("BLEU", "chrF"))
    return Comparison(bleu_difference, bleu_p, chrf_difference, chrf_p, RESAMPLES)


def _difference(first: Any, second: Any) -> tuple[float, float]:
    """Return the difference of two scores and its p-value, which sacrebleu's formula underestimates for equal ones."""
    difference = float(second.score - first.score)
    return difference, float(second.p_value) if difference else 1.0
