"""One batch of sentences on one runtime: the encoder runs once, then each step takes the tokens of the live hypotheses.

States are reordered by the parents inside the graph, and stay the runtime's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edge_attn.spec import GraphSpec, Runtime, Value
from edge_attn.text.tokenizers import BOS, EOS, PAD


def pad_sources(sources: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """source (batch, src) int64 padded with PAD, and source_length (batch) int64."""
    lengths = np.array([len(source) for source in sources], np.int64)
    padded = np.full((len(sources), int(lengths.max())), PAD, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
    return padded, lengths


class StepDecoder:
    """One batch of sentences on one runtime."""

    def __init__(self, runtime: Runtime, sources: Sequence[Sequence[int]]) -> None:
        source, lengths = pad_sources(sources)
        self.runtime = runtime
        self.batch = len(sources)
        self.encoded = runtime.run("encoder", {"source": source, "source_length": lengths})
        step = runtime.graphs["step"]
        self._memory = {name: self.encoded[name] for name in step.names("memory.")}
        self._states = step.names("state.")
        self._state = {name: self.encoded[name] for name in self._states}
        self.aligned = _aligned(step)
        self.candidates, self.vocabulary = _sizes(step)
        self._rows = np.arange(self.batch)

    def step(self, tokens: np.ndarray, parents: np.ndarray) -> dict[str, Value]:
        """tokens and parents (batch, beam) int64 -> the step's outputs; its states are kept for the next step."""
        if len(self._rows) < self.batch:
            tokens, parents = tokens[self._rows], parents[self._rows]
        outputs = self.runtime.run("step", {"tokens": tokens, "parents": parents, **self._memory, **self._state})
        self._state = {name: outputs["next_" + name] for name in self._states}
        return outputs

    def read(self, outputs: Mapping[str, Value], name: str) -> np.ndarray:
        """An output of the latest step (batch, ...), zero for sentences that were dropped."""
        value = self.runtime.numpy(outputs[name])
        if len(self._rows) == self.batch:
            return value
        whole = np.zeros((self.batch, *value.shape[1:]), value.dtype)
        whole[self._rows] = value
        return whole

    def drop(self, alive: np.ndarray) -> None:
        """Only sentences that are `alive` (batch) are computed from here on: where the runtime can take rows out of its
        values, and where they are at most half, which pays for the copy."""
        left = np.flatnonzero(alive[self._rows])
        if 2 * len(left) > len(self._rows):
            return
        memory, state = (
            {name: self.runtime.select_rows(value, left) for name, value in values.items()}
            for values in (self._memory, self._state)
        )
        if all(value is not None for value in (*memory.values(), *state.values())):
            self._memory, self._state, self._rows = memory, state, self._rows[left]


def _aligned(step: GraphSpec) -> bool:
    return any(tensor.name == "alignment" for tensor in step.outputs)


def _sizes(step: GraphSpec) -> tuple[int, int]:
    """Candidates that a step gives, and entries of the vocabulary."""
    sizes = {tensor.name: tensor.shape[-1] for tensor in step.outputs if tensor.shape}
    return int(sizes["candidates"]), int(sizes["log_probs"])


def teacher_force(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[tuple[StepDecoder, dict[str, Value]]]:
    """Teacher-forced along `targets`: the outputs of each step, up to the longest target's end symbol; a beam of one.

    Rows whose target has ended are fed eos; what they say then means nothing.
    """
    decoding = StepDecoder(runtime, sources)
    parents = np.zeros((len(sources), 1), np.int64)
    for step in range(max(map(len, targets)) + 1):
        last = [BOS if step == 0 else target[step - 1] if step <= len(target) else EOS for target in targets]
        yield decoding, decoding.step(np.array(last, np.int64)[:, None], parents)
