"""The implementations of an op, each run on the inputs of a case, and their comparison with the oracle."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from op_cases import CASES, Arrays

from edge_attn.export import lower
from edge_attn.models import layers
from edge_attn.models.layers.torch_ops import REGISTERED
from edge_attn.ops import DOMAIN

torch.set_num_threads(1)

for module in pkgutil.iter_modules(layers.__path__, "edge_attn.models.layers."):
    importlib.import_module(module.name)  # an op is registered by the module that uses it

# ---- the implementations


def call_torch(name: str, arrays: dict[str, np.ndarray], requires_grad: bool) -> tuple[torch.Tensor, ...]:
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    if requires_grad:
        tensors = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    case = CASES[name]
    result: tuple[torch.Tensor, ...] = REGISTERED[case.op](*tensors, *case.attributes.values())
    return result


def torch_eager(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    return tuple(tensor.numpy() for tensor in call_torch(name, arrays, requires_grad=False))


def torch_autograd(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    outputs = call_torch(name, arrays, requires_grad=True)
    assert all(tensor.grad_fn is not None for tensor in outputs)
    return tuple(tensor.detach().numpy() for tensor in outputs)


@functools.cache
def model(name: str, dtype: str) -> onnx.ModelProto:
    case = CASES[name]
    kind = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}[dtype]
    return lower.op_model(case.op, kind, case.shapes, **case.attributes)


def session(source: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])


def dtype_of(arrays: dict[str, np.ndarray]) -> str:
    return next(iter(arrays.values())).dtype.name


@functools.cache
def function_session(name: str, dtype: str) -> onnxruntime.InferenceSession:
    return session(model(name, dtype))


@functools.cache
def inlined_model(name: str, dtype: str) -> onnx.ModelProto:
    inlined = onnx.inliner.inline_local_functions(model(name, dtype))
    assert not inlined.functions
    assert DOMAIN not in {node.domain for node in inlined.graph.node}
    return inlined


@functools.cache
def inlined_session(name: str, dtype: str) -> onnxruntime.InferenceSession:
    return session(inlined_model(name, dtype))


@functools.cache
def evaluator(name: str, dtype: str) -> ReferenceEvaluator:
    return ReferenceEvaluator(inlined_model(name, dtype))


def onnx_function(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    return tuple(function_session(name, dtype_of(arrays)).run(None, arrays))


def onnx_inlined(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    return tuple(inlined_session(name, dtype_of(arrays)).run(None, arrays))


def onnx_reference(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    with np.errstate(over="ignore", invalid="ignore"):  # its Sigmoid of a large unused number overflows
        return tuple(evaluator(name, dtype_of(arrays)).run(None, arrays))


# ---- the comparison


@dataclasses.dataclass(frozen=True)
class Tolerance:
    rtol: float
    atol: float


FP32 = Tolerance(rtol=1e-5, atol=1e-6)
FP64 = Tolerance(rtol=1e-12, atol=1e-12)


def assert_conforms(
    names: tuple[str, ...], actual: Arrays, oracle_outputs: Arrays, dtype: str, tolerance: Tolerance
) -> None:
    """Check that each output has the oracle's shape, values and exact zeros, and the inputs' dtype.

    Args:
        names: Names of the outputs.
        actual: Outputs of the implementation.
        oracle_outputs: Outputs of the oracle.
        dtype: Type of the inputs.
        tolerance: Bound of the absolute difference: atol + rtol * |oracle|.

    Raises:
        AssertionError: an output differs; the message names it.
    """
    assert len(actual) == len(oracle_outputs) == len(names), (
        f"{len(actual)} outputs, the oracle has {len(oracle_outputs)}"
    )
    for name, ours, theirs in zip(names, actual, oracle_outputs, strict=True):
        assert ours.dtype == dtype, f"{name!r} has dtype {ours.dtype}, the inputs {dtype}"
        assert ours.shape == theirs.shape, f"{name!r} has shape {ours.shape}, the oracle {theirs.shape}"
        apart = np.abs(ours.astype(np.float64) - theirs)
        outside = ~(apart <= tolerance.atol + tolerance.rtol * np.abs(theirs))  # NaN counts as outside
        assert not outside.any(), f"{name!r}: {outside.sum()} of {outside.size} outside, max |diff| {apart.max()}"
        assert (ours[theirs == 0.0] == 0.0).all(), f"{name!r} is not exactly zero where the oracle is"
