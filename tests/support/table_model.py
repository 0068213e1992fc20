"""A model whose probabilities and attention weights are tables, so that expected scores are easy to compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import BOS, EOS, PAD, SPECIAL, WordTokenizer

WORDS = ("a", "b", "c")
NAMES = {name: i for i, name in enumerate((*SPECIAL, *WORDS))}
PROBABILITIES: Mapping[str, Mapping[str, float]] = {
    "<s>": {"a": 0.5, "b": 0.2, "</s>": 0.2, "<unk>": 0.1},
    "a": {"b": 0.3, "</s>": 0.7},
    "b": {"</s>": 0.75, "<unk>": 0.25},
    "<unk>": {"</s>": 1.0},
}
"""p(next | last). Every sentence ends after at most three words."""


class TableModel:
    """Model with log p(next | last) from tables (tables, vocab, vocab). The first token of a source selects the table.

    After the token `last`, attention is strongest at position `attend[last]`, and half as strong at each next one.
    """

    name, provider, precision = "table", "numpy", "fp64"

    def __init__(self, tables: np.ndarray, attend: Sequence[int] = (), max_batch: int | None = None) -> None:
        self.tables, self.attend, self.max_batch = tables, np.array(attend, np.int64), max_batch
        self.max_beam: int | None = None
        self.batches: list[int] = []
        vocabulary = tables.shape[-1]
        memory = TensorSpec("memory.source", "int64", ("batch", "src"))
        state = TensorSpec("state.step", "int64", ("batch", "beam"))
        tokens = [TensorSpec(name, "int64", ("batch", "beam")) for name in ("tokens", "parents")]
        outputs = [
            TensorSpec(name, "float64", ("batch", "beam", vocabulary))
            for name in ("log_probs", "candidates", "candidate_ids")
        ]
        if attend:
            outputs.append(TensorSpec("alignment", "float64", ("batch", "beam", "src")))
        self.graphs: Mapping[str, GraphSpec] = {
            "encoder": GraphSpec("", (TensorSpec("source", "int64", ("batch", "src")),), (memory, state)),
            "step": GraphSpec("", (*tokens, memory, state), tuple(outputs)),
        }

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "encoder":
            self.batches.append(len(inputs["source"]))
            return {"memory.source": inputs["source"], "state.step": np.zeros((len(inputs["source"]), 1), np.int64)}
        tokens, source = inputs["tokens"], inputs["memory.source"]
        log_probs = self.tables[source[:, :1] % len(self.tables), tokens]
        ids = np.argsort(-log_probs, axis=2, kind="stable")
        results = {
            "log_probs": log_probs,
            "candidates": np.take_along_axis(log_probs, ids, 2),
            "candidate_ids": ids,
            "next_state.step": np.take_along_axis(inputs["state.step"], inputs["parents"], 1) + 1,
        }
        if len(self.attend):
            positions, length = np.arange(source.shape[1]), (source != PAD).sum(1)[:, None, None]
            distance = (positions - self.attend[tokens][:, :, None]) % length
            weights = np.where(positions < length, 0.5**distance, 0.0)
            results["alignment"] = weights / weights.sum(2, keepdims=True)
        return results

    def numpy(self, value: np.ndarray) -> np.ndarray:
        return value

    def select_rows(self, value: np.ndarray, index: np.ndarray) -> np.ndarray:
        return value[index]

    def close(self) -> None: ...


def table(rows: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Return a table of log-probabilities (1, vocab, vocab). Pairs that are not in `rows` have probability 0."""
    log_probs = np.full((1, len(NAMES), len(NAMES)), -np.inf)
    for last, following in rows.items():
        for token, probability in following.items():
            log_probs[0, NAMES[last], NAMES[token]] = math.log(probability)
    return log_probs


def words() -> Text:
    return Text("words", WordTokenizer([*SPECIAL, *WORDS]), WordTokenizer([*SPECIAL, *WORDS]))


def translator(runtime: TableModel, text: Text | None = None, max_source: int = 20) -> Translator:
    return Translator(runtime, text or words(), max_source)


def token_log_probs(table_: np.ndarray, target: Sequence[int]) -> list[float]:
    """Return the log-probability of each token and of the end symbol."""
    return [float(table_[last, token]) for last, token in zip((BOS, *target), (*target, EOS), strict=True)]
