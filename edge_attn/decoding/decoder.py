"""Step-by-step decoding on a runtime: the encoder runs once per batch, then each step continues the live hypotheses.

The step's graph reorders its states by the parents. Memory and states stay in the form of their runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edge_attn.errors import BundleError
from edge_attn.spec import GraphSpec, Runtime, Value
from edge_attn.text.tokenizers import BOS, EOS, PAD

ENCODER, STEP = "encoder", "step"
"""Names of the two graphs of an encoder-decoder model."""


def check_graphs(graphs: Mapping[str, GraphSpec], where: str) -> None:
    """Check that the graphs have the inputs and outputs that decoding needs.

    Raises:
        BundleError: a graph, an input or an output is missing, or is not as decoding needs it; the sentence begins with
            `where`.
    """
    for name in (ENCODER, STEP):
        if name not in graphs:
            raise BundleError(f"{where}: an encoder-decoder bundle needs the graph {name!r}")
    states, memory = graphs[STEP].names("state."), graphs[STEP].names("memory.")
    required = {
        ENCODER: [*memory, *states],
        STEP: ["log_probs", "candidates", "candidate_ids", *(f"next_{state}" for state in states)],
    }
    for name, tensors in required.items():
        outputs = {tensor.name for tensor in graphs[name].outputs}
        for tensor in tensors:
            if tensor not in outputs:
                raise BundleError(
                    f"{where}: the graph {name!r} has no output {tensor!r}, which an encoder-decoder bundle needs"
                )
    _check_inputs(graphs[ENCODER], {"source": 2, "source_length": 1}, f"{where}: the graph {ENCODER!r}")
    _check_inputs(graphs[STEP], {"tokens": 2, "parents": 2}, f"{where}: the graph {STEP!r}")
    _check_outputs(graphs, f"{where}: the graph {STEP!r}")


def _check_inputs(graph: GraphSpec, ranks: Mapping[str, int], where: str) -> None:
    """Check the names, dtypes and ranks of the inputs that are token ids, lengths and indices."""
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    for name, rank in ranks.items():
        if name not in inputs or (inputs[name].dtype, len(inputs[name].shape)) != ("int64", rank):
            raise BundleError(f"{where} needs an input {name!r} of type int64 with {rank} axes, got {inputs.get(name)}")
    for name in inputs.keys() - ranks.keys():
        if not name.startswith(("memory.", "state.")):
            raise BundleError(f"{where} has an input {name!r} that nothing provides")


def _check_outputs(graphs: Mapping[str, GraphSpec], where: str) -> None:
    """Check the dtypes and ranks of what a step returns, and that memory and states fit the next step."""
    encoded, outputs = ({tensor.name: tensor for tensor in graphs[name].outputs} for name in (ENCODER, STEP))
    for name in ("candidates", "candidate_ids", "log_probs", "alignment"):
        tensor = outputs.get(name)
        kind = "int" if name == "candidate_ids" else "float"
        if tensor and not (tensor.dtype.startswith(kind) and len(tensor.shape) == 3):
            raise BundleError(f"{where} needs an output {name!r} of type {kind} with 3 axes, got {tensor}")
    sizes = [outputs[name].shape[-1] for name in ("candidates", "candidate_ids", "log_probs")]
    if any(type(size) is not int or size < 1 for size in sizes) or sizes[0] != sizes[1] or sizes[1] > sizes[2]:
        raise BundleError(
            f"{where} must return as many candidates as candidate_ids, and no more than log_probs, got "
            f"{', '.join(map(str, sizes))}"
        )
    for tensor in graphs[STEP].inputs:
        if tensor.name.startswith(("memory.", "state.")):
            sources = [encoded[tensor.name]]
            sources += [outputs[f"next_{tensor.name}"]] if tensor.name.startswith("state.") else []
            for source in sources:
                if (source.dtype, len(source.shape)) != (tensor.dtype, len(tensor.shape)):
                    raise BundleError(f"{where} takes {tensor}, and receives {source}")


def has_alignment(graphs: Mapping[str, GraphSpec]) -> bool:
    """Return whether a step returns attention weights."""
    return any(tensor.name == "alignment" for tensor in graphs[STEP].outputs)


def output_sizes(graphs: Mapping[str, GraphSpec]) -> tuple[int, int]:
    """Return the number of candidates of a step and the size of the target vocabulary."""
    sizes = {tensor.name: tensor.shape[-1] for tensor in graphs[STEP].outputs if tensor.shape}
    return int(sizes["candidates"]), int(sizes["log_probs"])


def vocabulary_sizes(graphs: Mapping[str, GraphSpec], where: str) -> tuple[int, int]:
    """Return the number of source entries and of target entries.

    Raises:
        BundleError: the encoder does not describe the range of its token ids; the sentence begins with `where`.
    """
    source = next((tensor for tensor in graphs[ENCODER].inputs if tensor.name == "source"), None)
    if source is None or len(source.values) != 2 or type(source.values[1]) is not int:
        raise BundleError(f"{where}: the graph {ENCODER!r} has no input 'source' with the range of its token ids")
    return source.values[1] + 1, output_sizes(graphs)[1]


def check_vocabularies(graphs: Mapping[str, GraphSpec], sizes: tuple[int, int], where: str) -> None:
    """Check that the vocabularies have as many entries as the tables of the graphs.

    Args:
        graphs: the graphs of the model.
        sizes: number of source and of target entries of the text processing.
        where: name of the bundle in error messages.

    Raises:
        BundleError: one of them has more or fewer.
    """
    for side, size, rows in zip(("source", "target"), sizes, vocabulary_sizes(graphs, where), strict=True):
        if size != rows:
            raise BundleError(
                f"{where}: the {side} vocabulary has {size} entries, the graphs have {rows}; "
                "the files are of different models: export the bundle again"
            )


def pad_sources(sources: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return source (batch, src) int64, padded with PAD, and source_length (batch) int64."""
    lengths = np.array([len(source) for source in sources], np.int64)
    padded = np.full((len(sources), int(lengths.max())), PAD, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
    return padded, lengths


def encode(runtime: Runtime, sources: Sequence[Sequence[int]]) -> dict[str, Value]:
    """Return the encoder's outputs for a padded batch of sources."""
    source, lengths = pad_sources(sources)
    return runtime.run(ENCODER, {"source": source, "source_length": lengths})


class StepDecoder:
    """One batch of sentences that is decoded step by step on one runtime."""

    def __init__(self, runtime: Runtime, sources: Sequence[Sequence[int]]) -> None:
        self.runtime = runtime
        self.batch = len(sources)
        self.encoded = encode(runtime, sources)
        step = runtime.graphs[STEP]
        self._memory = {name: self.encoded[name] for name in step.names("memory.")}
        self._states = step.names("state.")
        self._state = {name: self.encoded[name] for name in self._states}
        self.has_alignment = has_alignment(runtime.graphs)
        self.candidates, self.vocabulary = output_sizes(runtime.graphs)
        self._rows = np.arange(self.batch)

    def step(self, tokens: np.ndarray, parents: np.ndarray) -> dict[str, Value]:
        """Run one step and keep its states for the next one.

        Args:
            tokens: last token of each hypothesis, (batch, beam) int64.
            parents: index of each hypothesis among those of the previous step, (batch, beam) int64.

        Returns:
            The step's outputs by name, in the form of the runtime. Read them with `read`.
        """
        if len(self._rows) < self.batch:
            tokens, parents = tokens[self._rows], parents[self._rows]
        outputs = self.runtime.run(STEP, {"tokens": tokens, "parents": parents, **self._memory, **self._state})
        self._state = {name: outputs["next_" + name] for name in self._states}
        return outputs

    def read(self, outputs: Mapping[str, Value], name: str) -> np.ndarray:
        """Return an output of the latest step (batch, ...), with zeros for the sentences that were dropped."""
        value = self.runtime.numpy(outputs[name])
        if len(self._rows) == self.batch:
            return value
        padded = np.zeros((self.batch, *value.shape[1:]), value.dtype)
        padded[self._rows] = value
        return padded

    def read_alignment(self, outputs: Mapping[str, Value]) -> np.ndarray:
        """Return the attention weights of the latest step, (batch, beam, src)."""
        return self.read(outputs, "alignment")

    def drop_finished(self, alive: np.ndarray) -> None:
        """Compute only the sentences that are `alive` (batch) from here on.

        Nothing is dropped where the runtime cannot copy rows, or while more than half of the rows are alive: the copy
        would cost more than it saves.
        """
        left = np.flatnonzero(alive[self._rows])
        if 2 * len(left) > len(self._rows):
            return
        memory, state = (
            {name: self.runtime.select_rows(value, left) for name, value in values.items()}
            for values in (self._memory, self._state)
        )
        if all(value is not None for value in (*memory.values(), *state.values())):
            self._memory, self._state, self._rows = memory, state, self._rows[left]


def teacher_force(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[tuple[StepDecoder, dict[str, Value]]]:
    """Yield the outputs of each step along `targets`, up to the longest target's end symbol, with a beam of one.

    Rows whose target has ended are fed eos, and their outputs are meaningless.
    """
    decoder = StepDecoder(runtime, sources)
    parents = np.zeros((len(sources), 1), np.int64)
    for step in range(max(map(len, targets)) + 1):
        last = [BOS if step == 0 else target[step - 1] if step <= len(target) else EOS for target in targets]
        yield decoder, decoder.step(np.array(last, np.int64)[:, None], parents)
