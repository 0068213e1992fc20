"""Reading of golden data: one table of what it holds, by the graphs, vocabularies and lengths of its bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import COMPLETE_GOLDEN_FORMAT, Manifest
from edge_attn.config.validation import from_mapping
from edge_attn.decoding.decoder import (
    ENCODER,
    STEP,
    check_graphs,
    has_alignment,
    output_sizes,
    vocabulary_sizes,
)
from edge_attn.errors import BundleError, ConfigError, UsageError
from edge_attn.parity.arrays import ArraySpec, unpack
from edge_attn.parity.decoder_probes import PROBE_SIZES, STEPS, Probes, probed_outputs
from edge_attn.parity.golden import FILES, PROJECTIONS, TOP, Golden, ReferenceHypothesis
from edge_attn.parity.probes import PROJECTIONS as PROBE_PROJECTIONS
from edge_attn.spec import GraphSpec

MAX_LOG_PROB = 1e-3
"""Largest log-probability that rounding yields."""


def load(bundle: Bundle) -> Golden:
    """Return the golden data of a bundle.

    Raises:
        BundleError: it cannot be read, or is not what the graphs and the manifest of the bundle describe.
    """
    manifest, where = bundle.manifest, f"{bundle.path}: {FILES[0]}"
    check_graphs(manifest.graphs, str(bundle.path))
    try:
        golden = from_mapping(Golden, json.loads(bundle.read(FILES[0])), where)
    except (ConfigError, UsageError) as error:
        raise BundleError(str(error) if where in str(error) else f"{where}: {error}") from error
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from error
    if golden.arrays:
        raise BundleError(f"{where}: arrays belong in {FILES[1]}")
    for key, noise in golden.noise.items():
        if not 0 <= noise < np.inf:
            raise BundleError(f"{where}: noise: {key} is {noise}, expected a finite number of at least 0")
    _check_search(golden, manifest.graphs, where)
    _check_sentences(golden, manifest.graphs, manifest.max_source, where)
    arrays = unpack(bundle.read(FILES[1]), array_specs(golden, manifest.graphs, where), f"{bundle.path}: {FILES[1]}")
    golden = dataclasses.replace(golden, arrays=arrays)
    check_contents(manifest, golden.contents(), str(bundle.path))
    if golden.probes is not None:
        _check_probes(golden.probes, f"{bundle.path}: {FILES[1]}")
    if manifest.format >= COMPLETE_GOLDEN_FORMAT:
        check_coverage(golden.coverage(manifest.graphs), str(bundle.path))
    return golden


def check_coverage(coverage: Mapping[str, tuple[int, int]], where: str) -> None:
    """Check that the golden data of a complete format looks up every entry.

    Raises:
        BundleError: it does not; the sentence begins with `where`.
    """
    for name, (covered, size) in coverage.items():
        if covered < size:
            raise BundleError(f"{where}: the golden data covers {covered} of {size} {name}; export the bundle again")


def check_contents(manifest: Manifest, actual: Mapping[str, int], where: str) -> None:
    """Check that golden data holds what the manifest records.

    Args:
        manifest: manifest of the bundle.
        actual: counts of the golden data.
        where: path of the bundle in error messages.

    Raises:
        BundleError: it holds something else.
    """
    if manifest.format < COMPLETE_GOLDEN_FORMAT and not manifest.golden:
        return
    for name in sorted({*actual, *manifest.golden}):
        expected, got = manifest.golden.get(name, 0), actual.get(name, 0)
        if expected != got:
            raise BundleError(
                f"{where}: golden data has {got} {name}, the manifest lists {expected}; export the bundle again"
            )


def array_specs(golden: Golden, graphs: Mapping[str, GraphSpec], where: str) -> dict[str, ArraySpec]:
    """Return the table of arrays that belong to golden data: dtype, shape and range by name.

    Args:
        golden: golden data without its arrays.
        graphs: inputs and outputs of the bundle's graphs.
        where: name of the file in error messages.

    Raises:
        BundleError: an output of the graphs cannot be recorded.
    """
    count, positions, steps = len(golden), golden.positions()[-1].stop, golden.steps()[-1].stop
    vocabulary = output_sizes(graphs)[1]
    top = min(TOP, vocabulary)
    specs = {
        "steps.top_ids": ArraySpec("int32", (steps, top), 0, vocabulary - 1),
        "steps.top_log_probs": ArraySpec("float32", (steps, top), maximum=MAX_LOG_PROB, finite=False),
        "steps.rest": ArraySpec("float32", (steps,), maximum=MAX_LOG_PROB),
        "steps.projections": ArraySpec("float32", (steps, PROJECTIONS)),
        "steps.noise": ArraySpec("float32", (steps,), 0),
    }
    for tensor in graphs[ENCODER].outputs:
        sizes, has_source = _without_source(tensor.shape[1:], f"{where}: {tensor}")
        shape = (positions if has_source else count, *sizes)
        dtype = "bool" if tensor.dtype == "bool" else "float32"
        specs[f"encoder.{tensor.name}"] = ArraySpec(dtype, shape, finite=False)
    for tensor in graphs[STEP].outputs:
        if tensor.name.startswith("next_"):
            sizes, has_source = _without_source(tensor.shape[2:], f"{where}: {tensor}")
            shape = (steps, *(sizes if has_source else sizes[:-1]), PROJECTIONS)
            specs[f"steps.{tensor.name}"] = ArraySpec("float32", shape, finite=False)
    if golden.probe_sizes:
        specs.update(_probe_specs(golden, graphs, where))
    if has_alignment(graphs):
        for name in ("steps.alignment", "beam.alignment"):
            rows = zip(golden.alignment_rows(name), golden.sources, strict=True)
            specs[name] = ArraySpec("float32", (sum(symbols * len(source) for symbols, source in rows),))
    return specs


def _probe_specs(golden: Golden, graphs: Mapping[str, GraphSpec], where: str) -> dict[str, ArraySpec]:
    """Return the table of the probes' arrays; see `array_specs`."""
    if golden.probe_sizes.keys() != PROBE_SIZES or min(golden.probe_sizes.values()) < 1:
        raise BundleError(f"{where}: probe_sizes must be {', '.join(sorted(PROBE_SIZES))}, each at least 1")
    sources, tokens, hypotheses, walk = (golden.probe_sizes[name] for name in PROBE_SIZES)
    source_size, target_size = vocabulary_sizes(graphs, where)
    specs = {
        "entries": ArraySpec("int32", (source_size,), 0, source_size - 1),
        "sources": ArraySpec("int32", (tokens,), 0, source_size - 1),
        "source_lengths": ArraySpec("int32", (sources,), 1, tokens),
        "owners": ArraySpec("int32", (hypotheses,), 0, sources - 1),
        "paths": ArraySpec("int32", (hypotheses, STEPS), 0, target_size - 1),
        "walk": ArraySpec("int32", (walk,), 0, target_size - 1),
    }
    rows = {ENCODER: source_size + sources, STEP: STEPS * hypotheses + walk}
    for graph, count in rows.items():
        for name in probed_outputs(graphs[graph]):
            specs[f"{graph}.{name}"] = ArraySpec("float32", (count, PROBE_PROJECTIONS), finite=False)
    return {f"probes.{name}": spec for name, spec in specs.items()}


def _check_probes(probes: Probes, where: str) -> None:
    """Check that the sequences of the probes fit each other."""
    lengths = probes.arrays()["probes.source_lengths"]
    owners = np.unique(probes.owners)
    is_split = len(probes.sources) == len(lengths) and all(probes.sources)
    if not is_split or not np.array_equal(owners, np.arange(len(lengths))) or (np.diff(probes.owners) < 0).any():
        raise BundleError(f"{where}: the sources and hypotheses of the probes do not fit each other")


def _without_source(axes: Sequence[object], where: str) -> tuple[list[int], bool]:
    """Return the sizes of axes other than `src`, and whether that is among them."""
    sizes = [axis for axis in axes if axis != "src"]
    if not all(isinstance(axis, int) for axis in sizes) or len(axes) - len(sizes) > 1:
        raise BundleError(f"{where} has an axis that golden data is not recorded for")
    return [axis for axis in sizes if isinstance(axis, int)], len(axes) > len(sizes)


def _check_search(golden: Golden, graphs: Mapping[str, GraphSpec], where: str) -> None:
    """Check that these graphs support the recorded search."""
    search, (candidates, vocabulary) = golden.search, output_sizes(graphs)
    if golden.candidates not in (0, candidates):
        raise BundleError(
            f"{where}: recorded with {golden.candidates} candidates a step, the graph {STEP!r} has {candidates}; "
            "export the bundle again"
        )
    if search.sample or search.alternatives or search.suppress:
        raise BundleError(f"{where}: search: expected beam search without samples, alternatives and suppressed tokens")
    if candidates < search.beam + 1 and candidates < vocabulary:
        raise BundleError(
            f"{where}: search: a beam of {search.beam} needs {search.beam + 1} candidates a step, "
            f"the graph {STEP!r} has {candidates}"
        )


def _check_sentences(golden: Golden, graphs: Mapping[str, GraphSpec], max_source: int, where: str) -> None:
    """Check the number of sentences, sources and hypotheses, and each of them.

    Args:
        golden: golden data without its arrays.
        graphs: inputs and outputs of the bundle's graphs.
        max_source: maximum source length in tokens.
        where: name of the file in error messages.
    """
    count = len(golden)
    if not count or not all(golden.n_best) or {len(golden.sources), len(golden.greedy), len(golden.n_best)} != {count}:
        raise BundleError(f"{where} lacks a source, a greedy result or an n-best list for some sentence")
    source_size, target_size = vocabulary_sizes(graphs, where)
    for i, (sentence, source) in enumerate(zip(golden.sentences, golden.sources, strict=True)):
        _check_text(sentence, f"{where}: sentences[{i}]")
        _check_tokens(source, (1, max_source), source_size, f"{where}: sources[{i}]")
    for name, lists in (("greedy", [(best,) for best in golden.greedy]), ("n_best", golden.n_best)):
        for i, hypotheses in enumerate(lists):
            if len(hypotheses) > golden.search.returned:
                limit = golden.search.returned
                raise BundleError(f"{where}: {name}[{i}] has {len(hypotheses)} hypotheses, the search returns {limit}")
            for hypothesis in hypotheses:
                _check_hypothesis(hypothesis, golden.search.max_length, target_size, f"{where}: {name}[{i}]")


def _check_hypothesis(hypothesis: ReferenceHypothesis, max_length: int, vocabulary: int, where: str) -> None:
    """Check the tokens, text and numbers of a hypothesis.

    Args:
        hypothesis: the hypothesis.
        max_length: maximum number of tokens.
        vocabulary: number of target entries.
        where: its place in error messages.
    """
    _check_text(hypothesis.text, where)
    _check_tokens(hypothesis.tokens, (0, max_length), vocabulary, where)
    ranges = {"log_prob": (-np.inf, MAX_LOG_PROB * max_length), "score": (-np.inf, np.inf), "noise": (0.0, np.inf)}
    for name, (low, high) in ranges.items():
        value = getattr(hypothesis, name)
        if not np.isfinite(value) or not low <= value <= high:
            raise BundleError(f"{where}: {name} is {value}, expected a finite number from {low:g} to {high:g}")


def _check_text(text: str, where: str) -> None:
    """Check that a text can be encoded."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BundleError(f"{where} contains half of a character: {text!r}")


def _check_tokens(tokens: Sequence[int], lengths: tuple[int, int], vocabulary: int, where: str) -> None:
    """Check the number of tokens, and that the vocabulary has each of them."""
    if not lengths[0] <= len(tokens) <= lengths[1]:
        raise BundleError(f"{where} has {len(tokens)} tokens, expected {lengths[0]} to {lengths[1]}")
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise BundleError(f"{where} has the token {token}, the vocabulary has {vocabulary} entries")
