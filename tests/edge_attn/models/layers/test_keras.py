"""Keras' attention layers equal Keras on its torch backend, for every option and mask."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edge_attn
from edge_attn.errors import ConfigError
from edge_attn.models.layers.keras import KerasAdditiveAttention, KerasAttention, KerasDot, KerasLayer
from edge_attn.ops.softmax_attention import oracle

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras"
)
torch.set_num_threads(1)

BATCH, TGT, SRC, SIZE = 3, 4, 5, 6
KINDS = {
    "dot": (KerasAttention, {"use_scale": False, "score_mode": "dot"}),
    "dot scaled": (KerasAttention, {"use_scale": True, "score_mode": "dot"}),
    "concat": (KerasAttention, {"use_scale": False, "score_mode": "concat"}),
    "concat scaled": (KerasAttention, {"use_scale": True, "score_mode": "concat"}),
    "additive": (KerasAdditiveAttention, {"use_scale": False}),
    "additive scaled": (KerasAdditiveAttention, {"use_scale": True}),
}
VALUE_MASKS = {
    "none": None,
    "all": [[1, 1, 1, 1, 1]] * 3,
    "ragged": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "late": [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]],
    "some rows": [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]],
}
"""With the causal mask `late` has queries without a key too."""
QUERY_MASKS = {"none": None, "ragged": [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]}


def layer(kind: str, keras_empty_rows: bool) -> KerasLayer:
    """Return a layer with random weights."""
    torch.manual_seed(len(kind))
    layer_class, options = KINDS[kind]
    sizes = {"size": SIZE} if layer_class is KerasAdditiveAttention else {}
    module: KerasLayer = layer_class(**sizes, **options, keras_empty_rows=keras_empty_rows)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5)
    return module


def make_inputs(own_key: bool, value_mask: str, query_mask: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"query": (BATCH, TGT, SIZE), "value": (BATCH, SRC, SIZE), "key": (BATCH, SRC, SIZE)}
    inputs: dict[str, Any] = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }
    inputs["key"] = inputs["key"] if own_key else None
    for name, mask in (("query_mask", QUERY_MASKS[query_mask]), ("value_mask", VALUE_MASKS[value_mask])):
        inputs[name] = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    return inputs


def keras_outputs(keras: Any, module: KerasLayer, kind: str, causal: bool, inputs: dict[str, Any]) -> list[Tensor]:
    """Return context and weights of Keras' layer with the weights of `module`."""
    layer_class, options = KINDS[kind]
    name = {KerasAttention: "Attention", KerasAdditiveAttention: "AdditiveAttention"}[layer_class]
    theirs = getattr(keras.layers, name)(**options)
    tensors = [inputs[key] for key in ("query", "value", "key") if inputs[key] is not None]
    theirs.build([tensor.shape for tensor in tensors])
    theirs.set_weights([parameter.detach().numpy() for parameter in module.parameters()])
    mask = [inputs["query_mask"], inputs["value_mask"]]
    outputs = theirs(
        tensors,
        mask=None if mask == [None, None] else mask,
        return_attention_scores=True,
        use_causal_mask=causal,
    )
    return [tensor.detach() for tensor in outputs]


def empty_rows(inputs: dict[str, Any], causal: bool) -> Tensor:
    """Return the queries whose keys are all masked (batch, tgt)."""
    mask = torch.ones(BATCH, TGT, SRC, dtype=torch.bool)
    if inputs["value_mask"] is not None:
        mask = mask & inputs["value_mask"][:, None, :]
    if causal:
        mask = mask & torch.ones(TGT, SRC, dtype=torch.bool).tril()
    return ~mask.any(-1)


@pytest.mark.parametrize("causal", [False, True], ids=["not causal", "causal"])
@pytest.mark.parametrize("query_mask", QUERY_MASKS)
@pytest.mark.parametrize("value_mask", VALUE_MASKS)
@pytest.mark.parametrize("own_key", [False, True], ids=["no key", "key"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer_equals_keras(
    keras: Any, kind: str, own_key: bool, value_mask: str, query_mask: str, causal: bool
) -> None:
    module, inputs = layer(kind, keras_empty_rows=True), make_inputs(own_key, value_mask, query_mask)
    expected = keras_outputs(keras, module, kind, causal, inputs)
    torch.testing.assert_close(list(module(**inputs, causal=causal)), expected, rtol=0, atol=1e-6)

    ours = layer(kind, keras_empty_rows=False)(**inputs, causal=causal)
    empty = empty_rows(inputs, causal)
    assert empty.any() == (value_mask == "some rows" or (causal and value_mask == "late"))
    for actual, theirs in zip(ours, expected, strict=True):
        assert (actual[empty] == 0).all()
        torch.testing.assert_close(actual[~empty], theirs[~empty], rtol=0, atol=1e-6)


@torch.no_grad()
def test_keras_attends_to_masked_keys_of_empty_rows(keras: Any) -> None:
    """The test above would detect the difference."""
    inputs = make_inputs(True, "some rows", "none")
    expected = keras_outputs(keras, layer("dot", True), "dot", False, inputs)
    _, weights = layer("dot", keras_empty_rows=False)(**inputs)
    assert (expected[1][0].sum(-1) - 1).abs().max() < 1e-6
    assert (expected[1] - weights).abs().max() > 0.1


def equation(kind: str, module: KerasLayer, inputs: dict[str, Any], causal: bool) -> tuple[np.ndarray, ...]:
    """Return context and weights of the equation in the docstring, in float64 numpy."""
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}
    q, v, k = (inputs[name].numpy() for name in ("query", "value", "key"))
    scale = p.get("scale", 1.0)
    both = q[:, :, None] + k[:, None]
    if kind.startswith("dot"):
        energy = scale * np.einsum("bif,bjf->bij", q, k)
    elif kind.startswith("concat"):
        energy = p["concat_score_weight"] * np.tanh(scale * both).sum(-1)
    else:
        energy = (scale * np.tanh(both)).sum(-1)
    mask = inputs["value_mask"].numpy()[:, None] & (np.tri(TGT, SRC, dtype=bool) if causal else True)
    context, weights = oracle(energy, v, mask)
    return np.where(inputs["query_mask"].numpy()[:, :, None], context, 0.0), weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("value_mask", ["ragged", "late", "some rows"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer_follows_its_equation(kind: str, value_mask: str, causal: bool) -> None:
    module, inputs = layer(kind, False).double(), make_inputs(True, value_mask, "ragged", torch.float64)
    for ours, theirs in zip(module(**inputs, causal=causal), equation(kind, module, inputs, causal), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        assert (ours.numpy()[theirs == 0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_correct_and_reach_every_parameter(kind: str) -> None:
    module, inputs = layer(kind, False).double(), make_inputs(True, "some rows", "ragged", torch.float64)
    tensors = [inputs[name].requires_grad_() for name in ("query", "value", "key")]
    masks = (inputs["query_mask"], inputs["value_mask"])
    assert torch.autograd.gradcheck(lambda *t: module(*t, *masks), tensors)
    context, weights = module(*tensors, *masks)
    (context.square().sum() + weights.square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


class MaskedLayer(nn.Module):
    """A user's module that calls the layer with all of its inputs."""

    def __init__(self, inner: KerasLayer, causal: bool) -> None:
        super().__init__()
        self.inner, self.causal = inner, causal

    def forward(
        self, query: Tensor, value: Tensor, key: Tensor, query_mask: Tensor, value_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        context, weights = self.inner(query, value, key, query_mask, value_mask, self.causal)
        return context, weights


INPUTS = {
    "query": ("float32", ["batch", "tgt", SIZE]),
    "value": ("float32", ["batch", "src", 7]),
    "key": ("float32", ["batch", "src", SIZE]),
    "query_mask": ("bool", ["batch", "tgt"]),
    "value_mask": ("bool", ["batch", "src"]),
}
OUTPUTS = {"context": ("float32", ["batch", "tgt", 7]), "weights": ("float32", ["batch", "tgt", "src"])}


@pytest.mark.parametrize(("causal", "keras_empty_rows"), [(False, False), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_export_equals_torch_at_other_sizes(kind: str, causal: bool, keras_empty_rows: bool, tmp_path: Path) -> None:
    module = MaskedLayer(layer(kind, keras_empty_rows), causal)
    edge_attn.export_module(module, tmp_path / "keras.onnx", INPUTS, OUTPUTS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "keras.onnx", options, providers=["CPUExecutionProvider"])
    for batch, tgt, src in ((1, 1, 1), (3, 4, 5), (2, 9, 33)):
        inputs = [
            torch.randn(batch, tgt, SIZE),
            torch.randn(batch, src, 7),
            torch.randn(batch, src, SIZE),
            torch.rand(batch, tgt) < 0.7,
            torch.rand(batch, src) < 0.7,
        ]
        inputs[4][0] = False
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)})
        for ours, theirs in zip(outputs, module(*inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert (outputs[1][0] == 0).all() != keras_empty_rows


def test_layer_without_masks_exports(tmp_path: Path) -> None:
    module = KerasAttention(score_mode="concat")
    inputs = {name: INPUTS[name] for name in ("query", "value")} | {"value": ("float32", ["batch", "src", SIZE])}
    outputs = {"context": ("float32", ["batch", "tgt", SIZE]), "weights": ("float32", ["batch", "tgt", "src"])}
    edge_attn.export_module(module, tmp_path / "keras.onnx", inputs, outputs)
    assert (tmp_path / "keras.onnx").is_file()


def test_unknown_score_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="score_mode must be one of dot, concat, got 'general'"):
        KerasAttention(score_mode="general")


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="got a query of size 6 and values of size 8; use 'general'"):
        KerasDot(6, 8, 4)


def test_kinds_are_every_combination_of_options() -> None:
    """A new option of use_scale, score_mode or layer must change this test."""
    tested = {(layer_class, *sorted(options.items())) for layer_class, options in KINDS.values()}
    attention = itertools.product((False, True), ("dot", "concat"))
    every = {(KerasAttention, ("score_mode", mode), ("use_scale", scale)) for scale, mode in attention}
    assert tested == every | {(KerasAdditiveAttention, ("use_scale", scale)) for scale in (False, True)}
