"""Export a checkpoint to a bundle.

The package has the name of the function `edge_attn.export`, whose place it takes when it is imported. So it can be
called as that function.
"""

import sys
from types import ModuleType
from typing import Any

import edge_attn  # first: it configures ONNX Runtime
from edge_attn.versions import require

require("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


class _CallablePackage(ModuleType):
    """Module that can be called as the function of its name."""

    __wrapped__ = staticmethod(edge_attn.export)  # for inspect.signature and help

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
