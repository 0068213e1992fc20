"""Take an attention seq2seq model from PyTorch to the edge, and prove that the deployed model gives the same results.

    >>> import edge_attn
    >>> model = edge_attn.load("bundle")
    >>> model.translate(["I am cold."])[0].text

Importing the package loads neither torch, onnx nor a runtime. It turns off the telemetry of ONNX Runtime, which sends
reports to Microsoft by default from version 1.29 on, unless ORT_DISABLE_TELEMETRY is set in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    EdgeAttnError,
    ExportError,
    InputError,
    MissingExtraError,
    NotTestedError,
    ParityError,
    TooLargeError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edge_attn.bundle.manifest import Manifest
    from edge_attn.runtimes.commands.corpus_scores import EvaluationReport
    from edge_attn.runtimes.tasks.translation import Translator
    from edge_attn.runtimes.verification.report import Report
    from edge_attn.spec import ModuleSpec

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it is imported

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "EdgeAttnError",
    "ExportError",
    "InputError",
    "MissingExtraError",
    "NotTestedError",
    "ParityError",
    "SearchConfig",
    "TooLargeError",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "export_module",
    "load",
    "train",
    "verify",
]
__version__ = "0.1.0"

PathLike: TypeAlias = "str | os.PathLike[str]"


def load(
    bundle: str | os.PathLike[str],
    runtime: str = "ort-cpu",
    threads: int | None = None,
    precision: str = "fp32",
    allow_fallback: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Translator:
    """Open a bundle on a runtime, ready for its task.

    The model is a context manager. Several threads may use one model at the same time on ort-cpu; on a GPU, load one
    model for each thread.

        with edge_attn.load("bundle") as model:
            print(model.translate(["I am cold."])[0].text)

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
        InputError: `bundle` is no path.
        UsageError: an unknown runtime, or one that does not serve this precision.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
    """
    from edge_attn.bundle.bundle import Bundle
    from edge_attn.config.runtime import RuntimeOptions
    from edge_attn.registry import TASKS, resolve

    options = RuntimeOptions(threads, precision, allow_fallback, _optional_path(cache_dir))
    opened = Bundle.open(_path(bundle))
    model: Translator = resolve("task", TASKS, opened.manifest.task).open(opened, runtime, options)
    return model


def export_module(
    module: nn.Module,
    out: str | os.PathLike[str],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    axes: Mapping[str, Any] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
    inline: bool = False,
) -> ModuleSpec:
    """Export a torch module to an ONNX file, compared with torch at many shapes. Needs the extra `export`.

    The module is exported, and left, in evaluation mode. `inputs` and `outputs` describe the dtype and the shape of
    each tensor. A string in a shape is a dynamic axis. A third entry is the range of the values, where a string is the
    size of an axis:

        edge_attn.export_module(
            module,
            "module.onnx",
            {"tokens": ("int64", ["batch", "src"], [0, 99]), "length": ("int64", ["batch"], [1, "src"])},
            {"context": ("float32", ["batch", 1, 64])},
            axes={"src": {"minimum": 5, "maximum": 512}},
        )

    If all names of inputs are parameters of forward, inputs are bound by name, else by position; outputs with keys
    likewise. docs/own-model.md explains nested, optional and masked inputs.

    Args:
        module: torch module, with layers of edge-attn or any other; scripted modules too.
        out: ONNX file to write.
        inputs: description of each input, by name. The third entry may be a dict of `values` (the range), `order`
            ("ascending" or "descending") and, for a boolean mask, `some` (an axis along which one value is True). A
            list or dict of descriptions is a nested input.
        outputs: dtype and shape of each output, by name.
        axes: `minimum`, `maximum` and `multiple` of dynamic axes, by name. Sizes of other axes at which torch does not
            run the module are left out of the comparison, and reported.
        examples: example inputs, each a dict of arrays or tensors by name; the first is traced, all are compared. If
            they cover at least two sizes of each dynamic axis, no others are.
        inline: replace the functions of our ops by their standard ops, for runtimes without functions.

    Returns:
        The description of the exported graph, with the exporter that wrote it and the shapes that were compared.

    Raises:
        ExportError: the module does not export, or a check fails. Nothing is written then.
        InputError: `out` cannot be written.
        MissingExtraError: torch or onnx is not installed.
    """
    from edge_attn.registry import import_object

    export: Callable[..., ModuleSpec] = import_object("edge_attn.export.module:export_module")
    return export(module, out, inputs, outputs, axes, examples, inline)


def train(
    config: PathLike,
    out: PathLike,
    data: PathLike | None = None,
    threads: int | None = None,
    init: PathLike | None = None,
    device: str = "auto",
    settings: Sequence[str] = (),
    tensorboard: PathLike | None = None,
) -> None:
    """Train a model into a checkpoint, or resume the interrupted run there. Needs the extra `train`.

    Args:
        config: TOML file of the configuration.
        out: checkpoint folder.
        data: folder of the data files; None is the folder of `config`.
        threads: CPU threads; None lets torch choose. A fixed number makes the weights reproducible.
        init: checkpoint whose weights a new run begins with.
        device: cpu, cuda, or auto: a CUDA GPU if there is one.
        settings: values that replace those of the file, as "training.updates=40".
        tensorboard: folder for TensorBoard's event files; None for none.

    Raises:
        ConfigError, InputError: the configuration or the data cannot be used.
        CheckpointError: `out` contains a run of another configuration, or `init` is not a checkpoint.
        UsageError: an option is invalid.
        NotTestedError: there is no such device.
        MissingExtraError: torch is not installed.
    """
    from edge_attn.registry import VERBS, import_object

    paths = _path(config), _path(out), _optional_path(data), _optional_path(init)
    config_path, out_path, data_path, init_path = paths
    import_object("edge_attn.training.inputs:check_inputs")(config_path, out_path, data_path, init_path, settings)
    run = import_object(VERBS["train"])
    run(config_path, out_path, data_path, threads, init_path, device, settings, _optional_path(tensorboard))


def export(
    checkpoint: PathLike,
    out: PathLike,
    candidates: int = 16,
    sentences: PathLike | None = None,
    force: bool = False,
    overrides: Mapping[str, float] | None = None,
    inline: bool = False,
) -> Manifest:
    """Export a checkpoint to a bundle that is verified before it is written. Needs the extra `export`.

    Args:
        checkpoint: folder of the trained model.
        out: bundle to write: a folder, or a zip if it ends in .zip.
        candidates: best tokens that a step returns; a beam is at most one less.
        sentences: file of source sentences for the golden data; None for those of the checkpoint.
        force: replace a bundle at `out`.
        overrides: bounds of the verification by name, for this export.
        inline: write standard ops in place of functions and fp32 weights, for other ONNX runtimes and quantizers.

    Returns:
        The manifest of the bundle.

    Raises:
        CheckpointError, ExportError: the model does not export, or a check fails.
        ParityError: the results of the bundle differ from the reference.
        InputError: `out` cannot be written, or `sentences` cannot be read.
        UsageError: an override is not a bound.
        MissingExtraError: torch or onnx is not installed.
    """
    from edge_attn.registry import VERBS, import_object

    arguments = _path(checkpoint), _path(out), candidates, _optional_path(sentences), force
    import_object("edge_attn.parity.tolerances:bounds")("fp32", {}, overrides or {})
    import_object("edge_attn.bundle.export_inputs:check_inputs")(*arguments)
    manifest: Manifest = import_object(VERBS["export"])(*arguments, overrides, inline)
    return manifest


def verify(
    bundle: PathLike,
    runtime: str = "ort-cpu",
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    reference: PathLike | None = None,
    sentences: PathLike | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    allow_fallback: bool = False,
    cache_dir: PathLike | None = None,
) -> Report:
    """Compare a bundle with the results of its trained model, on the machine where it runs.

    Args:
        bundle: bundle folder or its zip.
        runtime: ort-cpu, ort-cuda, trt or trt-rtx.
        levels: L1, L2, L3 and L5, or some of them; none means all.
        overrides: bounds by name that differ in this run.
        reference: checkpoint whose live model replaces the golden data; needs the extra `export`.
        sentences: file of sentences for `reference`; None for those of the golden data.
        threads: CPU threads; None lets the runtime choose.
        precision: fp32, fp16 or int8.
        allow_fallback: with ort-cuda, run on the CPU where CUDA is missing.
        cache_dir: engine cache folder; None is edge-attn in the user's cache folder.

    Returns:
        The report. `exit_code` is that of the command, `verdict` and `levels` have the results, `str` prints them.

    Raises:
        BundleError, CheckpointError, InputError: a bundle, a checkpoint or a file cannot be used.
        UsageError: an unknown level, bound or runtime.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
    """
    from edge_attn.config.runtime import RuntimeOptions
    from edge_attn.registry import VERBS, import_object

    options = RuntimeOptions(threads, precision, allow_fallback, _optional_path(cache_dir))
    files = _optional_path(reference), _optional_path(sentences)
    report: Report = import_object(VERBS["verify"])(_path(bundle), runtime, levels, overrides, *files, options)
    return report


def evaluate(
    model: PathLike,
    corpus: PathLike,
    config: SearchConfig | None = None,
    references: str = "first",
    against: PathLike | None = None,
    by_length: bool = False,
    limit: int | None = None,
    separator: str = "\t",
    columns: Sequence[int] = (),
    runtime: str = "ort-cpu",
    threads: int | None = None,
    precision: str = "fp32",
    allow_fallback: bool = False,
    cache_dir: PathLike | None = None,
) -> EvaluationReport:
    """Compute BLEU and chrF of a model on a file of pairs. Needs the extra `evaluate`.

    Args:
        model: bundle, or checkpoint, which runs on torch.
        corpus: file of pairs, one a line; .gz is decompressed.
        config: search options; None is a beam of 4.
        references: `first` scores with the first reference of each source, `all` with all of them.
        against: second model, evaluated in the same way and compared by a paired bootstrap test.
        by_length: score by source length too.
        limit: number of distinct sources to use; None for all.
        separator: text between source and target.
        columns: numbers of the two columns, as (1, 2); none takes the first two.
        runtime: runtime of a bundle.
        threads: CPU threads; None lets the runtime choose.
        precision: fp32, fp16 or int8.
        allow_fallback: with ort-cuda, run on the CPU where CUDA is missing.
        cache_dir: engine cache folder; None is edge-attn in the user's cache folder.

    Returns:
        The report; `evaluations` has one entry a model.

    Raises:
        InputError: a model or the corpus cannot be used.
        UsageError: an option is invalid, or the model does not support it.
        MissingExtraError: sacrebleu is not installed.
        NotTestedError: the runtime is not installed.
    """
    from edge_attn.config.runtime import RuntimeOptions
    from edge_attn.registry import VERBS, import_object

    report: EvaluationReport = import_object(VERBS["evaluate"])(
        _path(model),
        _path(corpus),
        config,
        separator=separator,
        by_length=by_length,
        against=_optional_path(against),
        limit=limit,
        runtime=runtime,
        options=RuntimeOptions(threads, precision, allow_fallback, _optional_path(cache_dir)),
        references=references,
        columns=columns,
    )
    return report


def _path(path: PathLike) -> Path:
    """Return `path` as a Path.

    Raises:
        InputError: it is no path.
    """
    from pathlib import Path

    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"expected the path of a file or folder, got {path!r}")
    return Path(path)


def _optional_path(path: PathLike | None) -> Path | None:
    return None if path is None else _path(path)
