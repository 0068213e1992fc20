"""Greedy decoding with the torch model on a GPU, three ways: eager, compiled, and as a captured CUDA graph.

The three share the encoder, the loop and the formulas; only what runs one step differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from bench_decode import MAX_LENGTH, Sources
from torch import Tensor

from edge_attn.models import torch_ops
from edge_attn.models.attention import Memory
from edge_attn.models.seq2seq import Seq2Seq, State
from edge_attn.search import pad_sources
from edge_attn.text import BOS, EOS
from edge_attn.training.checkpoint import load

Step = Callable[[Tensor, Memory, State], tuple[Tensor, State]]
"""The last tokens (batch, 1), memory and state -> the next tokens and the next state."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WARM_UP = 3
"""Steps that CUDA runs before it records one, so that its libraries have chosen their kernels."""


class Steps(Protocol):
    """Sentences under way: `start` takes what the encoder gave, each `next` gives one more token each (batch, 1)."""

    def start(self, memory: Memory, state: State) -> None: ...

    def next(self) -> Tensor: ...


class Called:
    """Each step is a call, of an eager function or of a compiled one."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def start(self, memory: Memory, state: State) -> None:
        self._memory, self._state = memory, state
        self._tokens = first_tokens(state)

    def next(self) -> Tensor:
        self._tokens, self._state = self._step(self._tokens, self._memory, self._state)
        return self._tokens


class Captured:
    """Each step is one launch of a CUDA graph, recorded once per shape of the memory."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._recorded: dict[tuple[torch.Size, ...], tuple[Callable[[], None], Tensor, Memory, State]] = {}

    def start(self, memory: Memory, state: State) -> None:
        shapes = tuple(value.shape for value in memory.values())
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(memory, state)
        self._launch, self._tokens, held, states = self._recorded[shapes]
        self._tokens.fill_(BOS)
        for kept, given in ((held, memory), (states, state)):
            for name, value in given.items():
                kept[name].copy_(value)

    def next(self) -> Tensor:
        self._launch()
        return self._tokens

    def _record(self, memory: Memory, state: State) -> tuple[Callable[[], None], Tensor, Memory, State]:
        tokens = first_tokens(state)
        memory, state = ({name: value.clone() for name, value in values.items()} for values in (memory, state))

        def work() -> None:
            following, states = self._step(tokens, memory, state)
            tokens.copy_(following)
            for name, value in states.items():
                state[name].copy_(value)

        return record(work), tokens, memory, state


def record(work: Callable[[], None]) -> Callable[[], None]:
    """What launches `work` again, on the same tensors, as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def set_up() -> None:
    """Once a process: fp32 means fp32, and the compiler sees the formulas that one op each hides for the export."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch_ops.additive_attention, torch_ops.dot_attention = torch_ops._additive, torch_ops._dot


def first_tokens(state: State) -> Tensor:
    some = next(iter(state.values()))
    return torch.full((some.shape[0], 1), BOS, device=some.device)


WAYS: dict[str, Callable[[Step], Steps]] = {
    "torch eager": Called,
    "torch.compile": lambda step: Called(torch.compile(step)),
    "torch CUDA graph": Captured,
}


class TorchGreedy:
    """A checkpoint's model on `device`, its steps run in one of the WAYS."""

    def __init__(self, checkpoint: Path, way: str, precision: str, device: str = "cuda") -> None:
        model, _, _ = load(checkpoint)
        self._model = model.eval().to(device, DTYPES[precision])
        self._steps = WAYS[way](one_step(self._model))
        self._device = device

    def decode(self, sources: Sources) -> int:
        """Decodes a batch, gives the tokens made."""
        with torch.no_grad():
            self._start(sources)
            done = torch.zeros(len(sources), 1, dtype=torch.bool, device=self._device)
            made = torch.zeros((), dtype=torch.long, device=self._device)
            for _ in range(MAX_LENGTH):
                tokens = self._steps.next()
                made += (~done).sum()
                done |= tokens == EOS
                if bool(done.all()):
                    break
            return int(made)

    def stepper(self, sources: Sources) -> Callable[[], object]:
        """One step behind the encoder, waited for."""
        with torch.no_grad():
            self._start(sources)

        def step() -> object:
            with torch.no_grad():
                return self._steps.next().cpu()

        return step

    def _start(self, sources: Sources) -> None:
        source, lengths = (torch.from_numpy(array).to(self._device) for array in pad_sources(sources))
        self._steps.start(*self._model.encode(source, lengths))

    def close(self) -> None:
        del self._steps, self._model


def one_step(model: Seq2Seq) -> Step:
    def step(tokens: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        features, _, following = model.step(model.embedding(tokens), memory, state)
        return torch.log_softmax(model.logits(features), -1).argmax(-1), following

    return step
