"""Parse and build both graphs of every kind of model with TensorRT-RTX, on a CPU, with dynamic shapes.

This proves that NVIDIA's parser and compiler accept them, not that they compute correctly: no engine runs here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import onnx
import onnx.inliner
import torch
from paths import EMBEDDED_BUNDLE, KINDS_FOLDER

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError
from edge_attn.ops import DOMAIN
from edge_attn.runtimes.trt.api import load_tensorrt
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine
from edge_attn.runtimes.trt.profiles import Profile
from edge_attn.spec import GraphSpec, TensorSpec

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")

pytestmark = pytest.mark.rtx
torch.set_num_threads(1)

PROFILE = Profile({"batch": (1, 8, 32), "beam": (1, 4, 5), "previous_beam": (1, 4, 5), "src": (1, 16, 200)})
EMBEDDED = EMBEDDED_BUNDLE
TENSORRT = load_tensorrt(rtx=True)
DEFAULT = BuildConfig()
DTYPES = {kind: str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in (1, 7, 9)}


def build(model: onnx.ModelProto, config: BuildConfig = DEFAULT, profile: Profile = PROFILE, **options: Any) -> int:
    """Parse, check and build. Return the size of the engine."""
    spec = GraphSpec("graph", _tensors(model.graph.input), _tensors(model.graph.output))
    return len(
        build_engine(TENSORRT, model.SerializeToString(), spec, [profile], config, lambda share, phase: None, **options)
    )


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            DTYPES[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    graph_only = onnx.inliner.inline_local_functions(model)
    assert DOMAIN not in {node.domain for node in graph_only.graph.node}
    return graph_only


KINDS_WITHOUT_NEW_OPS = {"dot-lstm", "general-gru", "general-lstm", "none-lstm", "scaled-gru", "scaled-lstm"}
"""Kinds whose ops occur in other kinds too, and are not built again."""
KINDS = sorted(path for path in KINDS_FOLDER.glob("*.zip") if path.stem not in KINDS_WITHOUT_NEW_OPS)


@pytest.mark.slow
@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_portable_graphs_of_every_attention_build(path):
    """Functions are not inlined. tests/test_support_table.py builds the output of `optimize`."""
    opened = Bundle.open(path)
    for spec in opened.manifest.graphs.values():
        assert build(onnx.load_model_from_string(opened.read(spec.file))) > 0


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize("name", ["encoder", "step"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_trained_bundle_builds(toy_bundle, which, name, inline):
    path: Path = {"toy": toy_bundle, "embedded": EMBEDDED}[which]
    if not path.is_file():
        pytest.skip(f"{path.name} does not exist yet")
    opened = Bundle.open(path)
    model = onnx.load_model_from_string(opened.read(opened.manifest.graphs[name].file))
    assert build(inlined(model) if inline else model) > 0


def test_build_for_this_gpu_succeeds_without_a_gpu(toy_bundle):
    assert build(step_graph(toy_bundle), this_gpu=True) > 0


# ---- errors


def test_too_small_workspace_names_the_option(toy_bundle):
    with pytest.raises(InputError, match="in 1 MB of workspace; increase workspace_mb"):
        build(step_graph(toy_bundle), BuildConfig(workspace_mb=1))


@pytest.mark.parametrize("size", [3 * 10**9, 10**26])
def test_too_large_sizes_are_reported(toy_bundle, size):
    profile = Profile({**PROFILE.axes, "batch": (1, 8, size)})
    with pytest.raises(InputError, match=r"graph: TensorRT rejects the profile batch 1-.*: \w[^\n]*$"):
        build(step_graph(toy_bundle), profile=profile)


def step_graph(toy_bundle: Path) -> onnx.ModelProto:
    return onnx.load_model_from_string(Bundle.open(toy_bundle).read("graphs/step.onnx"))


def append(model: onnx.ModelProto, node: onnx.NodeProto, kind: int) -> onnx.ModelProto:
    model.graph.node.append(node)
    model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
    return model


def test_unsupported_op_is_rejected(toy_bundle):
    node = onnx.helper.make_node("NonZero", ["log_probs"], ["where"])
    with pytest.raises(InputError, match=r"NonZero '': .*(?i:plugin)"):
        build(append(step_graph(toy_bundle), node, onnx.TensorProto.INT64))


def test_op_without_function_body_is_rejected(toy_bundle):
    model = step_graph(toy_bundle)
    del model.functions[:]
    with pytest.raises(  # codespell:ignore found
        InputError, match=r"AdditiveAttention '.*': .*are the plugin name, version, and namespace correct"
    ):
        build(model)


def test_unused_input_is_rejected(toy_bundle):
    model = step_graph(toy_bundle)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch"]))
    with pytest.raises(InputError, match="the input more is used by no layer"):
        build(model)
