"""A second task for the tests: one graph that reads token ids and returns a label for each line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.decoder import pad_sources
from edge_attn.errors import BundleError, InputError
from edge_attn.parity.arrays import ArraySpec, pack, unpack
from edge_attn.parity.metrics import largest
from edge_attn.parity.probes import batch_sizes, entry_batches
from edge_attn.parity.reader import check_contents
from edge_attn.parity.results import LevelResult, Measurement
from edge_attn.parity.task import Compare, References
from edge_attn.runtimes.base import open_runtime
from edge_attn.spec import GraphSpec, Runtime
from edge_attn.text.tokenizers import EOS

GRAPH = "classifier"
FILES = ("golden/labels.json", "golden/logits.npz")
VOCABULARY = 128
"""Token ids are the ASCII codes of the line."""
LABELS = ("statement", "question", "exclamation")


def logits_of(runtime: Runtime, lines: Sequence[str]) -> np.ndarray:
    """Return the logits (lines, labels)."""
    return _logits(runtime, [[*line.encode("ascii"), EOS] for line in lines])


def entry_logits(runtime: Runtime) -> np.ndarray:
    """Return the logits (VOCABULARY, labels) of each token id alone, in batches of every size."""
    logits = np.zeros((VOCABULARY, len(LABELS)))
    for index in entry_batches(VOCABULARY, batch_sizes(runtime.max_batch)):
        logits[index] = _logits(runtime, [[int(i), EOS] for i in index])
    return logits


def _logits(runtime: Runtime, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    source, lengths = pad_sources(tokens)
    return runtime.numpy(runtime.run(GRAPH, {"source": source, "source_length": lengths})["logits"])


class Classifier:
    """A model that returns labels, on one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def classify(self, lines: Sequence[str]) -> list[str]:
        """Return the label of each line."""
        return [LABELS[i] for i in logits_of(self.runtime, lines).argmax(1)]


@dataclass(frozen=True)
class GoldenLabels:
    """Labels and logits of the reference, and the logits of each token id alone."""

    lines: tuple[str, ...]
    labels: tuple[str, ...]
    logits: np.ndarray
    entries: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    def files(self) -> dict[str, bytes]:
        """Return the files of a bundle that contain it."""
        content = {"lines": self.lines, "labels": self.labels}
        arrays = pack({"logits": self.logits, "entries": self.entries})
        return dict(zip(FILES, (json.dumps(content).encode(), arrays), strict=True))

    def contents(self) -> dict[str, int]:
        """Return the counts that the manifest records."""
        return {"lines": len(self), "entries": len(self.entries)}


class LabelTask:
    """Labels as a Task, verified at L1 (logits) and L3 (labels)."""

    @property
    def levels(self) -> Mapping[tuple[str, ...], Compare]:
        """Return the comparisons of L1 and of L3."""
        return {("L1",): self._compare_logits, ("L3",): self._compare_labels}

    def check_graphs(self, graphs: Mapping[str, GraphSpec], where: str) -> None:
        """Check that the one graph is there."""
        if GRAPH not in graphs:
            raise BundleError(f"{where}: a bundle of labels needs the graph {GRAPH!r}")

    def open(self, bundle: Bundle, runtime: str, options: RuntimeOptions) -> Classifier:
        """Return the Classifier of a bundle."""
        return Classifier(open_runtime(bundle, runtime, options))

    def record(self, bundle: Bundle, references: References, inputs: Sequence[str]) -> GoldenLabels:
        """Return what the reference computes for lines."""
        labels = Classifier(references.reference).classify(inputs)
        reference = references.reference
        return GoldenLabels(tuple(inputs), tuple(labels), logits_of(reference, inputs), entry_logits(reference))

    def load_golden(self, bundle: Bundle) -> GoldenLabels:
        """Return the golden data of a bundle."""
        content = json.loads(bundle.read(FILES[0]))
        lines, labels = tuple(content["lines"]), tuple(content["labels"])
        specs = {
            "logits": ArraySpec("float32", (len(lines), len(LABELS))),
            "entries": ArraySpec("float64", (VOCABULARY, len(LABELS))),
        }
        golden = GoldenLabels(lines, labels, **unpack(bundle.read(FILES[1]), specs, f"{bundle.path}: {FILES[1]}"))
        check_contents(bundle.manifest, golden.contents(), str(bundle.path))
        return golden

    def golden_inputs(self, golden: GoldenLabels) -> Sequence[str]:
        """Return the recorded lines."""
        return golden.lines

    def coverage(self, runtime: Runtime, golden: GoldenLabels) -> Mapping[str, tuple[int, int]]:
        """Return the number of token ids that were recorded, of all."""
        return {"token ids": (len(golden.entries), VOCABULARY)}

    def check_golden(self, runtime: Runtime, golden: GoldenLabels, origin: str) -> None:
        """Check that golden data has the labels of this model."""
        if golden.logits.shape[1:] != runtime.graphs[GRAPH].outputs[0].shape[1:]:
            raise InputError(f"{origin} is of another model than this bundle")

    def _compare_logits(
        self, bundle: Bundle, runtime: Runtime, golden: GoldenLabels, bounds: Mapping[str, float]
    ) -> list[LevelResult]:
        difference = largest(np.abs(logits_of(runtime, golden.lines) - golden.logits))
        entries = np.abs(entry_logits(runtime) - golden.entries).max(1)
        worst = f"token id {entries.argmax()}"
        measured: list[Any] = [
            Measurement("L1", "max_abs logits", difference, bounds["L1.max_abs"]),
            Measurement("L1", "probe logits", largest(entries), bounds["L1.probe"], place=worst),
        ]
        return [LevelResult("L1", measurements=measured).conclude()]

    def _compare_labels(
        self, bundle: Bundle, runtime: Runtime, golden: GoldenLabels, bounds: Mapping[str, float]
    ) -> list[LevelResult]:
        labels = Classifier(runtime).classify(golden.lines)
        wrong = sum(a != b for a, b in zip(labels, golden.labels, strict=True)) / len(golden)
        return [LevelResult("L3", measurements=[Measurement("L3", "labels", wrong, bounds["L3.tokens"])]).conclude()]


TASK = LabelTask()
