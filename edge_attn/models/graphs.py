"""The graphs that a seq2seq model splits into: `encoder` once per sentence, `step` once per token.

    encoder: source, source_length -> memory.*, state.*
    step: tokens, parents, memory.*, state.* -> candidates, candidate_ids, log_probs, (alignment,) next_state.*

The step first reorders its state by `parents`, (batch, beam) indices into the previous step's hypotheses, and ends with
the best candidates of each hypothesis, so that per step only small integers and scores reach the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edge_attn.models.folding import FoldedSeq2Seq, fold_for_inference
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.spec import GraphSpec, TensorSpec


class Graph(nn.Module):
    """A module whose inputs and outputs have names: `spec` says them, `forward` takes and gives them in that order."""

    spec: GraphSpec


class EncoderGraph(Graph):
    def __init__(self, model: Seq2Seq, stepped: FoldedSeq2Seq | Seq2Seq) -> None:
        super().__init__()
        self.model, self.stepped = model, stepped
        with torch.no_grad():  # an axis that grows with the sentence is its own
            (memory, state), (longer, more) = (
                self.stepped.encode(torch.ones(2, length, dtype=torch.long), torch.tensor([length, 2]))
                for length in (3, 5)
            )
        self._memory, self._state = list(memory), list(state)
        outputs = [_spec(f"memory.{name}", value, longer[name], ("batch",)) for name, value in memory.items()]
        outputs += [_spec(f"state.{name}", value, more[name], ("batch", 1)) for name, value in state.items()]
        self.spec = GraphSpec(
            "graphs/encoder.onnx",
            (
                TensorSpec("source", "int64", ("batch", "src"), (0, model.encoder.embedding.num_embeddings - 1)),
                TensorSpec("source_length", "int64", ("batch",), (0, "src")),
            ),
            tuple(outputs),
        )

    def forward(self, source: Tensor, source_length: Tensor) -> tuple[Tensor, ...]:
        memory, state = self.stepped.encode(source, source_length)
        return (*(memory[name] for name in self._memory), *(state[name] for name in self._state))


class StepGraph(Graph):
    def __init__(self, model: Seq2Seq, stepped: FoldedSeq2Seq | Seq2Seq, candidates: int) -> None:
        super().__init__()
        self.model, self.stepped = model, stepped
        encoder = EncoderGraph(model, stepped).spec
        self._memory = [t.name.partition(".")[2] for t in encoder.outputs if t.name.startswith("memory.")]
        self._state = [t.name.partition(".")[2] for t in encoder.outputs if t.name.startswith("state.")]
        vocab = model.output.out_features
        self.candidates = min(candidates, vocab)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        state = [t for t in encoder.outputs if t.name.startswith("state.")]
        inputs = [
            TensorSpec("tokens", "int64", ("batch", "beam"), (0, vocab - 1)),
            TensorSpec("parents", "int64", ("batch", "beam"), (0, "previous_beam-1")),
            *(t for t in encoder.outputs if t.name.startswith("memory.")),
            *(TensorSpec(t.name, t.dtype, ("batch", "previous_beam", *t.shape[2:])) for t in state),
        ]
        outputs = [
            TensorSpec("candidates", dtype, ("batch", "beam", self.candidates)),
            TensorSpec("candidate_ids", "int64", ("batch", "beam", self.candidates)),
            TensorSpec("log_probs", dtype, ("batch", "beam", vocab)),
        ]
        if model.config.attention != "none":
            outputs.append(TensorSpec("alignment", dtype, ("batch", "beam", "src")))
        outputs += [TensorSpec(f"next_{t.name}", t.dtype, ("batch", "beam", *t.shape[2:])) for t in state]
        self.spec = GraphSpec("graphs/step.onnx", tuple(inputs), tuple(outputs))

    def forward(self, tokens: Tensor, parents: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        memory = dict(zip(self._memory, tensors, strict=False))
        state = {
            name: torch.gather(value, 1, _same_rank(parents, value).expand(-1, -1, *value.shape[2:]))
            for name, value in zip(self._state, tensors[len(self._memory) :], strict=True)
        }
        features, weights, following = self.stepped.step(self.model.embedding(tokens), memory, state)
        logits = self.model.logits(features.flatten(0, 1)).reshape(*tokens.shape, -1)  # of two axes: one Gemm
        log_probs = torch.log_softmax(logits, -1)
        best, ids = torch.topk(log_probs, self.candidates, -1)
        shown = () if weights is None else (weights,)
        return (best, ids, log_probs, *shown, *(following[name] for name in self._state))


def graphs(model: Seq2Seq, candidates: int, folded: bool = True) -> dict[str, Graph]:
    """Every graph of the model, in evaluation mode: as it is deployed, or not folded, as its equations stand."""
    model = model.eval()
    stepped = fold_for_inference(model) if folded else model
    return {"encoder": EncoderGraph(model, stepped), "step": StepGraph(model, stepped, candidates)}


def _same_rank(parents: Tensor, value: Tensor) -> Tensor:
    for _ in range(value.ndim - 2):
        parents = parents[..., None]
    return parents


def _spec(name: str, value: Tensor, longer: Tensor, axes: tuple[Any, ...]) -> TensorSpec:
    """`axes` for the leading dimensions; of the rest, what is larger in `longer`, of a longer sentence, is `src`."""
    rest = ["src" if one != other else one for one, other in zip(value.shape, longer.shape, strict=True)]
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), (*axes, *rest[len(axes) :]))
