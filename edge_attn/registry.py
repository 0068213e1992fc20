"""Registries: tables from a name to "module:attribute".

A row is imported when it is used, so `edge-attn --help` imports neither torch, onnx nor a runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from edge_attn.errors import MissingExtraError, UsageError

VERBS = {
    "init": "edge_attn.training.template:write_template",
    "train": "edge_attn.training.run:train",
    "export": "edge_attn.export.pipeline:export",
    "translate": "edge_attn.runtimes.commands.translate:translate_file",
    "score": "edge_attn.runtimes.commands.score:score",
    "align": "edge_attn.runtimes.commands.align:align",
    "evaluate": "edge_attn.runtimes.commands.evaluate:evaluate",
    "verify": "edge_attn.runtimes.verification.verify:verify",
    "inspect": "edge_attn.runtimes.commands.inspect:inspect",
    "optimize": "edge_attn.runtimes.optimize.optimize:optimize",
    "doctor": "edge_attn.runtimes.doctor.check:doctor",
    "cache list": "edge_attn.runtimes.commands.cache:list_cache",
    "cache clear": "edge_attn.runtimes.commands.cache:clear_cache",
    "demo": "edge_attn.runtimes.commands.demo:demo",
}
RUNTIMES = {
    "ort-cpu": "edge_attn.runtimes.ort.cpu:OrtCpu",
    "ort-cuda": "edge_attn.runtimes.ort.cuda:OrtCuda",
    "trt": "edge_attn.runtimes.trt.runtime:Trt",
    "trt-rtx": "edge_attn.runtimes.trt.runtime:TrtRtx",
    "torch": "edge_attn.reference:open_checkpoint",
}
PRECISIONS = ("fp32", "fp16", "int8")
RUNTIME_PRECISIONS = {
    "ort-cpu": ("fp32",),
    "ort-cuda": ("fp32", "fp16"),
    "trt": PRECISIONS,
    "trt-rtx": PRECISIONS,
    "torch": ("fp32",),
}
"""Precisions in which each runtime runs a bundle."""
TARGETS = {
    "ort-cuda": "edge_attn.runtimes.optimize.targets:ORT_CUDA",
    "trt": "edge_attn.runtimes.optimize.targets:TRT",
}
"""Targets of `optimize`. The runtime trt-rtx runs the graphs of trt."""
TASKS = {"translation": "edge_attn.runtimes.tasks.encoder_decoder:TASK"}
FORMER_TASKS = {"seq2seq": "translation"}
"""Names of tasks in bundles of 0.1.0."""
FAMILIES = {"seq2seq": "edge_attn.models.seq2seq:Seq2Seq"}
ATTENTIONS = {
    "additive": "edge_attn.models.layers.attention:Additive",
    "concat": "edge_attn.models.layers.attention:Additive",
    "dot": "edge_attn.models.layers.attention:Dot",
    "general": "edge_attn.models.layers.attention:General",
    "scaled": "edge_attn.models.layers.attention:Scaled",
    "location": "edge_attn.models.layers.location:Location",
    "pooling": "edge_attn.models.layers.pooling:PooledAttention",
    "multi-head": "edge_attn.models.layers.multi_head:MultiHead",
    "keras-dot": "edge_attn.models.layers.keras:KerasDot",
    "keras-concat": "edge_attn.models.layers.keras:KerasConcat",
    "keras-additive": "edge_attn.models.layers.keras:KerasAdditive",
    "none": "edge_attn.models.layers.attention:NoAttention",
}
ATTENTION_WRAPPERS = {
    "local-m": "edge_attn.models.layers.local:Monotonic",
    "local-p": "edge_attn.models.layers.local:Predictive",
    "hard": "edge_attn.models.layers.hard:Hard",
    "coverage": "edge_attn.models.layers.coverage:Coverage",
}
"""Wrappers around an attention that has energies."""
CELLS = {
    "gru": "edge_attn.models.layers.recurrent:GruCell",
    "lstm": "edge_attn.models.layers.recurrent:LstmCell",
    "lstmn": "edge_attn.models.layers.lstmn:LstmnCell",
}
"""Recurrent cells of the decoder."""
LAYERS = {
    "gru": "edge_attn.models.layers.recurrent:RecurrentLayer",
    "lstm": "edge_attn.models.layers.recurrent:RecurrentLayer",
    "lstmn": "edge_attn.models.layers.lstmn:LstmnLayer",
}
"""Recurrent layers of the encoder, by the same names. A constructor takes its own name and the sizes."""
OPS = {
    "AdditiveAttention": "edge_attn.ops.additive:OP",
    "AttentionPooling": "edge_attn.ops.pooling:OP",
    "DotAttention": "edge_attn.ops.dot:OP",
    "Gru": "edge_attn.ops.gru:OP",
    "HardAttention": "edge_attn.ops.hard:OP",
    "IntraAttention": "edge_attn.ops.intra_attention:OP",
    "LocalAttention": "edge_attn.ops.local:OP",
    "LocationAttention": "edge_attn.ops.location:OP",
    "Lstm": "edge_attn.ops.lstm:OP",
    "MultiHeadDotAttention": "edge_attn.ops.multi_head:OP",
    "SoftmaxAttention": "edge_attn.ops.softmax_attention:OP",
    "SparseLocalAttention": "edge_attn.ops.local:SPARSE_OP",
    "SparsemaxAttention": "edge_attn.ops.sparsemax_attention:OP",
}
TOKENIZERS = {
    "sentencepiece": "edge_attn.text.tokenizers:SentencePieceTokenizer",
    "words": "edge_attn.text.tokenizers:WordTokenizer",
    "characters": "edge_attn.text.tokenizers:CharacterTokenizer",
}

EXTRAS = {
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "sacrebleu": "evaluate",
    "sentencex": "split",
    "h5py": "keras",
    "tensorboard": "tensorboard",
}
"""Extra that installs each optional package."""
RUNTIME_EXTRAS = {**EXTRAS, "onnx": "optimize"}
"""Extra that installs each optional package on a device."""


def resolve(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Return the object of the row `name` of a table.

    Raises:
        UsageError: there is no such row; the sentence lists the existing ones.
        MissingExtraError: the row needs a package that is not installed.
    """
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}{suggestion(name, table)}")
    return import_object(table[name])


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the entry of `known` that is most like `name`, or an empty text."""
    import difflib  # takes longer to import than the rest of `--help`

    entries = {entry.lower(): entry for entry in known}
    closest = difflib.get_close_matches(name.lower(), entries, 1, cutoff=0.52)
    return f"; did you mean {entries[closest[0]]!r}?" if closest else ""


def import_object(path: str) -> Any:
    """Return the object at "module:attribute".

    Raises:
        MissingExtraError: it needs a package that is not installed.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = RUNTIME_EXTRAS if module_name.startswith("edge_attn.runtimes.") else EXTRAS
        if missing in extras:
            raise MissingExtraError(missing, extras[missing]) from error
        raise
    return getattr(module, attribute)
