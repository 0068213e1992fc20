"""Register the plugin with the real bindings of TensorRT, call it as a build does, and print JSON.

    python tests/support/plugins/ask_tensorrt.py FOLDER STUBS PRECISION BATCH TGT SRC ATTN VALUE TACTIC

FOLDER contains tensorrt_bindings and tensorrt_lean_libs of one major version, STUBS the package `tensorrt` and stubs of
the libraries that a lean TensorRT lacks. The registry, the descriptors and every check are TensorRT's own. Expressions
of the dimensions, which a builder would pass, are plain numbers here.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from edge_attn.runtimes.trt.api import load_tensorrt
from edge_attn.runtimes.trt.plugins import plugins_for


def main(folder: str, stubs: str, precision: str, *numbers: str) -> None:
    batch, tgt, src, attn, value, tactic = map(int, numbers)
    for library in sorted(Path(stubs).glob("*.so.*")):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    sys.path[:0] = [stubs, folder]
    tensorrt = load_tensorrt()
    trt = tensorrt.trt
    for architecture in ("sm_90", "sm_87"):
        plugins_for("trt", ["AdditiveAttention"])["AdditiveAttention"].register(tensorrt, architecture)
    creator = trt.get_plugin_registry().get_creator("AdditiveAttention", "1", "edge_attn")
    request = trt.QuickPluginCreationRequest.UNKNOWN
    phase = trt.TensorRTPhase.BUILD
    plugin = creator.create_plugin("AdditiveAttention", "edge_attn", trt.PluginFieldCollection([]), phase, request)

    class Number(trt.IDimensionExpr):
        """Known dimension. TensorRT's class has no constructor, so `of` does not call it."""

        def __init__(self) -> None: ...

        @classmethod
        def of(cls, number: int) -> Number:
            expression = cls.__new__(cls)
            expression.number = number
            return expression

        def is_constant(self) -> bool:
            return True

        def get_constant_value(self) -> int:
            return self.number

    class Builder:
        constant = staticmethod(Number.of)

        def operation(self, what: object, first: Number, second: Number) -> Number:
            assert what == trt.DimensionOperation.PROD
            return Number.of(first.number * second.number)

    trt.DimsExprs = lambda length: [None] * length
    symbol = importlib.import_module("tensorrt.plugin").SymInt32
    check = symbol.__call__
    symbol.__call__ = lambda self: (check(self), self._expr.number)[1]

    kind = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}[precision]
    shapes = [(batch, tgt, attn), (batch, src, attn), (batch, src, value), (batch, src), (attn,)]
    kinds = [kind, kind, kind, trt.DataType.BOOL, kind]
    output_kinds = plugin.get_output_data_types(kinds, [len(shape) for shape in shapes])
    outputs = plugin.get_output_shapes([[Number.of(n) for n in shape] for shape in shapes], [], Builder())
    shapes += [tuple(n.number for n in shape) for shape in outputs]
    kinds += output_kinds

    def describe(shape: tuple[int, ...], kind: object) -> object:
        inner, outer = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
        inner.dims, inner.type, inner.format, inner.scale = trt.Dims(shape), kind, trt.TensorFormat.LINEAR, 1.0
        outer.desc, outer.min, outer.max = inner, trt.Dims(shape), trt.Dims(shape)
        return outer

    tensors = [describe(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
    supported = plugin.get_supported_format_combinations(tensors, 5)
    plugin.configure_plugin(tensors[:5], tensors[5:])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(tactic)
    launch, sizes = SimpleNamespace(), _Sizes()
    plugin.get_launch_params(None, tensors, 5, launch, sizes, Builder())
    name, ptx = plugin.get_kernel([t.desc for t in tensors[:5]], [t.desc for t in tensors[5:]])
    answers = {
        "version": tensorrt.name,
        "class": type(plugin).__name__,
        "output types": [str(kind) for kind in output_kinds],
        "output shapes": shapes[5:],
        "supported": [[str(d.type), str(d.format)] for d in supported],
        "tactics": sorted(tactics),
        "launch": vars(launch),
        "sizes": [sizes[index] for index in range(sizes.nbSymExprs)],
        "kernel": name,
        "ptx": ptx.decode().splitlines(),
    }
    print(json.dumps(answers))


class _Sizes(dict):
    """Extra arguments of the kernel, as a builder passes them: their number, and each."""

    nbSymExprs = 0  # noqa: N815  TensorRT's name


if __name__ == "__main__":
    main(*sys.argv[1:])
