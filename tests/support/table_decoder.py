"""A decoder with a table of probabilities, small enough to enumerate every sentence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.tokenizers import BOS, EOS

A, B = 4, 5


class TableDecoder:
    """log p(next | last) from tables (tables, vocab, vocab); the first entry of a source is the index of its table.

    The alignments are the rows of `attend` (vocab, src) for the last token. Without `attend` they contain the step, the
    last token and the history as one number, so an alignment that does not pass from parent to child shows. `read`
    contains the names of the outputs that were requested as numpy arrays.
    """

    name, provider = "table", "numpy"

    def __init__(
        self, tables: np.ndarray, candidates: int | None = None, attend: np.ndarray | None = None, aligned: bool = True
    ) -> None:
        self.tables, self.attend = tables, attend
        self.read: set[str] = set()
        self._outputs: dict[str, np.ndarray] = {}
        vocabulary = tables.shape[-1]
        self.candidates = candidates or vocabulary
        state = [TensorSpec(f"state.{name}", "int64", ("batch", "beam")) for name in ("step", "history")]
        memory = TensorSpec("memory.table", "int64", ("batch",))
        tokens = [TensorSpec(name, "int64", ("batch", "beam")) for name in ("tokens", "parents")]
        outputs = [
            TensorSpec("log_probs", "float64", ("batch", "beam", vocabulary)),
            TensorSpec("candidates", "float64", ("batch", "beam", self.candidates)),
            TensorSpec("candidate_ids", "int64", ("batch", "beam", self.candidates)),
            TensorSpec("alignment", "float64", ("batch", "beam", "src")),
        ]
        outputs = outputs if aligned else outputs[:-1]
        self.graphs: Mapping[str, GraphSpec] = {
            "encoder": GraphSpec("", (TensorSpec("source", "int64", ("batch", "src")),), (memory, *state)),
            "step": GraphSpec("", (*tokens, memory, *state), tuple(outputs)),
        }

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "encoder":
            zeros = np.zeros((len(inputs["source"]), 1), np.int64)
            return {"memory.table": inputs["source"][:, 0], "state.step": zeros, "state.history": zeros}
        tokens, parents = inputs["tokens"], inputs["parents"]
        vocabulary = self.tables.shape[-1]
        step = np.take_along_axis(inputs["state.step"], parents, 1) + 1
        history = np.take_along_axis(inputs["state.history"], parents, 1) * vocabulary + tokens
        log_probs = self.tables[inputs["memory.table"][:, None], tokens]
        ids = np.argsort(-log_probs, axis=2, kind="stable")[:, :, : self.candidates]
        alignment = np.stack([step, tokens, history], 2).astype(float) if self.attend is None else self.attend[tokens]
        self._outputs = {
            "log_probs": log_probs,
            "candidates": np.take_along_axis(log_probs, ids, 2),
            "candidate_ids": ids,
            "alignment": alignment,
            "next_state.step": step,
            "next_state.history": history,
        }
        return dict(self._outputs)

    def numpy(self, value: np.ndarray) -> np.ndarray:
        self.read |= {name for name, output in self._outputs.items() if output is value}
        return value

    def select_rows(self, value: np.ndarray, index: np.ndarray) -> np.ndarray:
        return value[index]


SOURCE = [0, 0, 0]


def table(rows: Mapping[int, Mapping[int, float]], vocabulary: int = 6) -> np.ndarray:
    """Return one table of log-probabilities from probabilities; tokens without a row entry have none."""
    log_probs = np.full((1, vocabulary, vocabulary), -np.inf)
    for last, following in rows.items():
        for token, probability in following.items():
            log_probs[0, last, token] = math.log(probability)
    return log_probs


def random_tables(seed: int, count: int, vocabulary: int) -> np.ndarray:
    scores = 2 * np.random.default_rng(seed).normal(size=(count, vocabulary, vocabulary))
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def log_prob(table_: np.ndarray, tokens: Sequence[int], finished: bool) -> float:
    symbols = [BOS, *tokens, *([EOS] if finished else [])]
    return float(sum(table_[last, token] for last, token in itertools.pairwise(symbols)))
