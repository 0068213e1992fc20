"""Take an attention seq2seq model from PyTorch to the edge, and prove that the deployed model gives the same results.

    >>> import edge_attn
    >>> model = edge_attn.load("bundle")
    >>> model.translate(["I am cold."])[0].text

Importing the package loads neither torch, onnx nor a runtime. It turns off the telemetry of ONNX Runtime, which sends
reports to Microsoft by default from version 1.29 on, unless ORT_DISABLE_TELEMETRY is set in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from edge_attn.runtimes.tasks.translation import Translator
    from edge_attn.spec import GraphSpec

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it is imported

__all__ = ["__version__", "export_module", "load"]
__version__ = "0.1.0"


def load(
    bundle: str | os.PathLike[str],
    runtime: str = "ort-cpu",
    threads: int | None = None,
    precision: str = "fp32",
    allow_fallback: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Translator:
    """Open a bundle on a runtime, ready for its task.

    Args:
        bundle: bundle folder or its zip.
        runtime: ort-cpu, ort-cuda, trt or trt-rtx.
        threads: CPU threads; None lets the runtime choose.
        precision: fp32, fp16 or int8. Other precisions than the bundle's own need graphs that `edge-attn optimize`
            writes.
        allow_fallback: with ort-cuda, run on the CPU where CUDA is missing.
        cache_dir: engine cache folder; None is edge-attn in the user's cache folder.

    Returns:
        The model. Its methods are those of the bundle's task: `translate` and `score`.

    Raises:
        BundleError: not a bundle, or damaged.
        UsageError: an unknown runtime, or one that does not serve this precision.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
    """
    from pathlib import Path

    from edge_attn.bundle.bundle import Bundle
    from edge_attn.config.runtime import RuntimeOptions
    from edge_attn.registry import TASKS, resolve

    folder = None if cache_dir is None else Path(cache_dir)
    options = RuntimeOptions(threads, precision, allow_fallback, folder)
    opened = Bundle.open(bundle)
    model: Translator = resolve("task", TASKS, opened.manifest.task).open(opened, runtime, options)
    return model


def export_module(
    module: nn.Module,
    out: str | os.PathLike[str],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
) -> GraphSpec:
    """Export a torch module to an ONNX file, checked at many shapes. Needs the extra `export`.

    The module is exported, and left, in evaluation mode. `inputs` and `outputs` describe, in the order of forward, the
    dtype and the shape of each tensor. A string in a shape is a dynamic axis. For integers a third entry may contain
    their range, where a string is the size of an axis:

        edge_attn.export_module(
            module,
            "module.onnx",
            {"tokens": ("int64", ["batch", "src"], [0, 99]), "length": ("int64", ["batch"], [1, "src"])},
            {"context": ("float32", ["batch", 1, 64])},
        )

    Args:
        module: torch module, with layers of edge-attn or any other.
        out: ONNX file to write.
        inputs: description of each input, by name.
        outputs: description of each output, by name.

    Returns:
        The description of the exported graph.

    Raises:
        ExportError: the module does not export, or a check fails. Nothing is written then.
        InputError: `out` cannot be written.
        MissingExtraError: torch or onnx is not installed.
    """
    from edge_attn.registry import import_object

    spec: GraphSpec = import_object("edge_attn.export.pipeline:export_module")(module, out, inputs, outputs)
    return spec
