"""Greedy decoding with the torch model, in three modes: eager, compiled, and as a captured CUDA graph.

The three share the encoder, the loop and the formulas, and differ in how one step runs. The encoder's recurrent layers
are torch's own nn.GRU or nn.LSTM, whose weights are in the order of cuDNN. The model's own op, which the export needs,
would reorder its weights for every batch. Lengths are also on the host, where packing needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from bench_decode import MAX_LENGTH, Sources
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from edge_attn.checkpoint import load
from edge_attn.decoding.decoder import pad_sources
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.recurrent import RecurrentLayer
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.text.tokenizers import BOS, EOS

Step = Callable[[Tensor, Memory, State], tuple[Tensor, State]]
"""Function from the last tokens (batch, 1), memory and state to the next tokens and the next state."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WARM_UP = 3
"""Steps before the capture, in which the CUDA libraries choose their kernels."""
RECOMPILE_LIMIT = 64
"""Compilations of one function. The default of dynamo is eight, too few for all precisions and batches; then the
function runs eagerly."""
ORDERS = {"gru": (1, 0, 2), "lstm": (0, 2, 3, 1)}
"""Indices that bring ONNX's gates into torch's order."""


class Steps(Protocol):
    """Decoding of a batch: `start` takes memory and first state, each `next` returns one more token (batch, 1)."""

    def start(self, memory: Memory, state: State) -> None: ...

    def next(self) -> Tensor: ...


class CallSteps:
    """Each step is a call of an eager or of a compiled function."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def start(self, memory: Memory, state: State) -> None:
        self._memory, self._state = memory, state
        self._tokens = first_tokens(state)

    def next(self) -> Tensor:
        self._tokens, self._state = self._step(self._tokens, self._memory, self._state)
        return self._tokens


class CapturedSteps:
    """Each step is one launch of a CUDA graph, which is captured once per shape of the memory."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._captured: dict[tuple[torch.Size, ...], tuple[Callable[[], None], Tensor, Memory, State]] = {}

    def start(self, memory: Memory, state: State) -> None:
        shapes = tuple(value.shape for value in memory.values())
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(memory, state)
        self._launch, self._tokens, graph_memory, graph_state = self._captured[shapes]
        self._tokens.fill_(BOS)
        for destination, values in ((graph_memory, memory), (graph_state, state)):
            for name, value in values.items():
                destination[name].copy_(value)

    def next(self) -> Tensor:
        self._launch()
        return self._tokens

    def _capture(self, memory: Memory, state: State) -> tuple[Callable[[], None], Tensor, Memory, State]:
        tokens = first_tokens(state)
        memory, state = ({name: value.clone() for name, value in values.items()} for values in (memory, state))

        def step() -> None:
            next_tokens, next_state = self._step(tokens, memory, state)
            tokens.copy_(next_tokens)
            for name, value in next_state.items():
                state[name].copy_(value)

        return capture(step), tokens, memory, state


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that launches `function` on the same tensors as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others have their own threads
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def set_up() -> None:
    """Prepare the process for a fair comparison.

    fp32 is computed without TF32. The compiler gets the formulas of our custom ops, which it cannot see into. It
    compiles for every shape and precision, or raises an error.
    """
    import torch._dynamo

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch_ops.additive_attention, torch_ops.dot_attention = torch_ops._additive, torch_ops._dot
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"):
        torch._dynamo.config.fail_on_recompile_limit_hit = True


def first_tokens(state: State) -> Tensor:
    tensor = next(iter(state.values()))
    return torch.full((tensor.shape[0], 1), BOS, device=tensor.device)


class Recurrent(nn.Module):
    """An encoder layer as torch's own module; sentences of equal length are not packed."""

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[layer.cell]
        self.rnn = kind(layer.w.shape[2], layer.r.shape[2], batch_first=True, bidirectional=True)
        order = ORDERS[layer.cell]
        for suffix, w, r, b in zip(("", "_reverse"), layer.w, layer.r, layer.b, strict=True):
            for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), (w, r, *b.chunk(2)), strict=True):
                getattr(self.rnn, f"{name}_l0{suffix}").data.copy_(torch_ops._torch_order(weight.data, order))
        self.lengths = torch.ones(0, dtype=torch.long)
        """Lengths of the batch, on the host."""

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if bool((self.lengths == x.shape[1]).all()):
            output, ends = self.rnn(x)
        else:
            packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
            output, ends = self.rnn(packed)
            output, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
        ends = ends if isinstance(ends, tuple) else (ends,)
        return output, tuple(end.transpose(0, 1).flatten(1) for end in ends)


MODES: dict[str, Callable[[Step], Steps]] = {
    "torch eager": CallSteps,
    "torch.compile": lambda step: CallSteps(torch.compile(step)),
    "torch CUDA graph": CapturedSteps,
}


class TorchGreedy:
    """The model of a checkpoint on `device`, its steps run in one of the MODES."""

    def __init__(self, checkpoint: Path, mode: str, precision: str, device: str = "cuda") -> None:
        model, _, _ = load(checkpoint)
        layers = model.encoder.layers
        self._own = [Recurrent(layer) for layer in layers if isinstance(layer, RecurrentLayer)]
        if len(self._own) == len(layers):
            model.encoder.layers = nn.ModuleList(self._own)
        self._model = model.eval().to(device, DTYPES[precision])
        self._steps = MODES[mode](one_step(self._model))
        self._device = device
        self.provider = f"torch {torch.__version__}, {device}"

    def decode(self, sources: Sources) -> int:
        """Decode a batch and return the number of generated tokens."""
        with torch.no_grad():
            self._start(sources)
            done = torch.zeros(len(sources), 1, dtype=torch.bool, device=self._device)
            generated = torch.zeros((), dtype=torch.long, device=self._device)
            for _ in range(MAX_LENGTH):
                tokens = self._steps.next()
                generated += (~done).sum()
                done |= tokens == EOS
                if bool(done.all()):
                    break
            return int(generated)

    def encoding(self, sources: Sources) -> Callable[[], object]:
        """Return a function that runs the encoder on `sources` and waits for it."""

        def encode() -> object:
            with torch.no_grad():
                _, state = self._encode(sources)
                return next(iter(state.values())).cpu()

        return encode

    def stepper(self, sources: Sources) -> Callable[[], object]:
        """Return a function that runs one step after the encoder and waits for it."""
        with torch.no_grad():
            self._start(sources)

        def step() -> object:
            with torch.no_grad():
                return self._steps.next().cpu()

        return step

    def _start(self, sources: Sources) -> None:
        self._steps.start(*self._encode(sources))

    def _encode(self, sources: Sources) -> tuple[Memory, State]:
        source, lengths = (torch.from_numpy(array) for array in pad_sources(sources))
        for layer in self._own:
            layer.lengths = lengths
        memory, state = self._model.encode(source.to(self._device), lengths.to(self._device))
        return memory, state

    def close(self) -> None:
        del self._steps, self._model


def one_step(model: Seq2Seq) -> Step:
    def step(tokens: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        features, _, next_state = model.decode(model.embedding(tokens), memory, state)
        return model.logits(features).argmax(-1), next_state

    return step
