"""Fixtures for tests of single modules: comparison of ONNX models with torch, and builds with TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edge_attn.spec import GraphSpec


@pytest.fixture(scope="session")
def build_with_tensorrt() -> Callable[..., None]:
    """Return a function that builds a model with its functions and inlined, with dynamic axes."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from onnx.inliner import inline_local_functions

    from edge_attn.runtimes.trt.api import load_tensorrt
    from edge_attn.runtimes.trt.build_config import BuildConfig
    from edge_attn.runtimes.trt.builder import build_engine
    from edge_attn.runtimes.trt.profiles import Profile

    def build(model: Any, spec: GraphSpec) -> None:
        axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
        profiles = [Profile(dict.fromkeys(axes, (1, 4, 32)))]
        for graph in (model, inline_local_functions(model)):
            source = graph.SerializeToString()
            assert build_engine(load_tensorrt(rtx=True), source, spec, profiles, BuildConfig(), lambda *messages: None)

    return build


@pytest.fixture(scope="session")
def check_against_torch() -> Callable[..., None]:
    """Return a function that traces a module, which must call only `op`, and compares it with torch at many sizes."""
    import onnxruntime
    import torch

    from edge_attn.export.trace import trace

    def check(module: Any, spec: GraphSpec, make_inputs: Callable[..., Sequence[Any]], op: str) -> None:
        model = trace(module, spec, make_inputs(2, 3, 5))
        assert [node.op_type for node in model.graph.node if node.domain == "edge_attn"] == [op]
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for sizes in ((1, 1, 1), (2, 5, 3), (4, 2, 3), (4, 2, 30)):
            tensors = make_inputs(*sizes)
            feed = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, tensors, strict=True)}
            with torch.no_grad():
                expected = module(*tensors)
            for ours, theirs in zip(session.run(None, feed), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
                assert ((ours == 0) == (theirs.numpy() == 0)).all()

    return check
