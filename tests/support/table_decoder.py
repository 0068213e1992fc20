"""A decoder that is a table of probabilities: small enough to know every sentence that it can say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.tokenizers import BOS, EOS

A, B = 4, 5


class TableDecoder:
    """log p(next | last) from tables (tables, vocab, vocab); a source's first entry says which table is its own.

    Its alignments are the rows of `attend` (vocab, src) for the last token, or hold the step, that token and the number
    that the whole history is, so one that was not handed down from parent to child shows. `read` names the outputs that
    were asked for as numpy arrays.
    """

    name, provider = "table", "numpy"

    def __init__(
        self, tables: np.ndarray, candidates: int | None = None, attend: np.ndarray | None = None, aligned: bool = True
    ) -> None:
        self.tables, self.attend = tables, attend
        self.read: set[str] = set()
        self._given: dict[str, np.ndarray] = {}
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
        self._given = {
            "log_probs": log_probs,
            "candidates": np.take_along_axis(log_probs, ids, 2),
            "candidate_ids": ids,
            "alignment": alignment,
            "next_state.step": step,
            "next_state.history": history,
        }
        return dict(self._given)

    def numpy(self, value: np.ndarray) -> np.ndarray:
        self.read |= {name for name, given in self._given.items() if given is value}
        return value

    def select_rows(self, value: np.ndarray, index: np.ndarray) -> np.ndarray:
        return value[index]


SOURCE = [0, 0, 0]


def table(rows: Mapping[int, Mapping[int, float]], vocabulary: int = 6) -> np.ndarray:
    """One table of probabilities; what is not said never comes."""
    made = np.full((1, vocabulary, vocabulary), -np.inf)
    for last, following in rows.items():
        for token, probability in following.items():
            made[0, last, token] = math.log(probability)
    return made


def random_tables(seed: int, count: int, vocabulary: int) -> np.ndarray:
    scores = 2 * np.random.default_rng(seed).normal(size=(count, vocabulary, vocabulary))
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def log_prob(table_: np.ndarray, tokens: Sequence[int], finished: bool) -> float:
    said = [BOS, *tokens, *([EOS] if finished else [])]
    return float(sum(table_[last, token] for last, token in itertools.pairwise(said)))
