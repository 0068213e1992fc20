"""The graphs of an encoder-decoder model: `encoder` once per sentence, `step` once per token.

    encoder: source, source_length -> memory.*, state.*
    step: tokens, parents, memory.*, state.* -> candidates, candidate_ids, log_probs, (alignment,) next_state.*

The step first reorders its state by `parents`, (batch, beam) indices into the previous step's hypotheses, and ends with
the best candidates of each hypothesis, so that only small integers and scores reach the host in each step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_attn.decoding.decoder import ENCODER, STEP
from edge_attn.models.folding import fold_for_inference
from edge_attn.models.interface import EncoderDecoder
from edge_attn.spec import GraphSpec, TensorSpec


class Graph(nn.Module):
    """A module whose inputs and outputs have names: `forward` takes and returns tensors in the order of `spec`."""

    spec: GraphSpec


class EncoderGraph(Graph):
    """The model's `encode`, with memory and state as named outputs."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():  # an axis that grows with the source is its `src` axis
            (memory, state), (longer, more) = (
                model.encode(torch.ones(2, length, dtype=torch.long), torch.tensor([length, 2])) for length in (3, 5)
            )
        self._memory, self._state = list(memory), list(state)
        outputs = [_spec(f"memory.{name}", value, longer[name], ("batch",)) for name, value in memory.items()]
        outputs += [_spec(f"state.{name}", value, more[name], ("batch", 1)) for name, value in state.items()]
        self.spec = GraphSpec(
            "graphs/encoder.onnx",
            (
                TensorSpec("source", "int64", ("batch", "src"), (0, model.source_vocabulary - 1)),
                TensorSpec("source_length", "int64", ("batch",), (0, "src")),
            ),
            tuple(outputs),
        )

    def forward(self, source: Tensor, source_length: Tensor) -> tuple[Tensor, ...]:
        """Return memory and state tensors."""
        memory, state = self.model.encode(source, source_length)
        return (*(memory[name] for name in self._memory), *(state[name] for name in self._state))


class StepGraph(Graph):
    """The model's `step`, between the reordering of its state and the selection of candidates."""

    def __init__(self, model: EncoderDecoder, encoder: GraphSpec, candidates: int) -> None:
        super().__init__()
        self.model = model
        memory = [t for t in encoder.outputs if t.name.startswith("memory.")]
        state = [t for t in encoder.outputs if t.name.startswith("state.")]
        self._memory = [t.name.removeprefix("memory.") for t in memory]
        self._state = [t.name.removeprefix("state.") for t in state]
        with torch.no_grad():
            first = model.encode(torch.ones(1, 2, dtype=torch.long), torch.tensor([2]))
            logits, weights, _ = model.step(torch.ones(1, 1, dtype=torch.long), *first)
        vocabulary, dtype = logits.shape[-1], _dtype(logits)
        self.candidates = min(candidates, vocabulary)
        inputs = [
            TensorSpec("tokens", "int64", ("batch", "beam"), (0, model.target_vocabulary - 1)),
            TensorSpec("parents", "int64", ("batch", "beam"), (0, "previous_beam-1")),
            *memory,
            *(TensorSpec(t.name, t.dtype, ("batch", "previous_beam", *t.shape[2:])) for t in state),
        ]
        outputs = [
            TensorSpec("candidates", dtype, ("batch", "beam", self.candidates)),
            TensorSpec("candidate_ids", "int64", ("batch", "beam", self.candidates)),
            TensorSpec("log_probs", dtype, ("batch", "beam", vocabulary)),
        ]
        if weights is not None:
            outputs.append(TensorSpec("alignment", dtype, ("batch", "beam", "src")))
        outputs += [TensorSpec(f"next_{t.name}", t.dtype, ("batch", "beam", *t.shape[2:])) for t in state]
        self.spec = GraphSpec("graphs/step.onnx", tuple(inputs), tuple(outputs))

    def forward(self, tokens: Tensor, parents: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of one step."""
        memory = dict(zip(self._memory, tensors, strict=False))
        state = {
            name: torch.gather(value, 1, _same_rank(parents, value).expand(-1, -1, *value.shape[2:]))
            for name, value in zip(self._state, tensors[len(self._memory) :], strict=True)
        }
        logits, weights, following = self.model.step(tokens, memory, state)
        log_probs = torch.log_softmax(logits, -1)
        best, ids = torch.topk(log_probs, self.candidates, -1)
        alignment = () if weights is None else (weights,)
        return (best, ids, log_probs, *alignment, *(following[name] for name in self._state))


def encoder_decoder_graphs(model: EncoderDecoder, candidates: int, folded: bool = True) -> dict[str, Graph]:
    """Return the graphs of a model in evaluation mode: folded, as it is deployed, or as its equations are."""
    cast(nn.Module, model).eval()
    exported = fold_for_inference(model) if folded else model
    encoder = EncoderGraph(exported)
    return {ENCODER: encoder, STEP: StepGraph(exported, encoder.spec, candidates)}


def _same_rank(parents: Tensor, value: Tensor) -> Tensor:
    for _ in range(value.ndim - 2):
        parents = parents[..., None]
    return parents


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _spec(name: str, value: Tensor, longer: Tensor, axes: tuple[Any, ...]) -> TensorSpec:
    """Return a spec with `axes` for the leading dimensions; any other one that grows with the source is `src`."""
    rest = ["src" if one != other else one for one, other in zip(value.shape, longer.shape, strict=True)]
    return TensorSpec(name, _dtype(value), (*axes, *rest[len(axes) :]))
