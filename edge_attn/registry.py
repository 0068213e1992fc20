"""The tables of the house: a name, and the string that says where the thing lives.

A row costs nothing until it is used, so `edge-attn --help` imports neither torch, onnx nor a runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_attn.errors import MissingExtraError, UsageError

VERBS = {
    "train": "edge_attn.training.loop:train",
    "export": "edge_attn.export.pipeline:export",
    "translate": "edge_attn.runtimes.translate_file:translate_file",
    "verify": "edge_attn.runtimes.verify:verify",
    "evaluate": "edge_attn.runtimes.evaluate:evaluate",
    "score": "edge_attn.runtimes.score:score",
    "align": "edge_attn.runtimes.align:align",
    "inspect": "edge_attn.runtimes.inspect:inspect",
    "show": "edge_attn.runtimes.inspect:show",
    "picture": "edge_attn.runtimes.picture:picture",
    "demo": "edge_attn.runtimes.demo:demo",
    "optimize": "edge_attn.runtimes.optimize:optimize",
    "doctor": "edge_attn.runtimes.doctor:doctor",
    "cache list": "edge_attn.runtimes.cache:list_cache",
    "cache clear": "edge_attn.runtimes.cache:clear_cache",
}
RUNTIMES = {
    "ort-cpu": "edge_attn.runtimes.ort:OrtCpu",
    "ort-cuda": "edge_attn.runtimes.ort_cuda:OrtCuda",
    "trt": "edge_attn.runtimes.trt:Trt",
    "trt-rtx": "edge_attn.runtimes.trt:TrtRtx",
    "torch": "edge_attn.models.reference:Reference",
}
PRECISIONS = ("fp32", "fp16", "int8")
SERVES = {
    "ort-cpu": ("fp32",),
    "ort-cuda": ("fp32", "fp16"),
    "trt": PRECISIONS,
    "trt-rtx": PRECISIONS,
    "torch": ("fp32",),
}
"""The precisions in which each runtime runs a bundle."""
TARGETS = {
    "ort-cuda": "edge_attn.runtimes.targets.recipes:ORT_CUDA",
    "trt": "edge_attn.runtimes.targets.recipes:TRT",
}
"""What `optimize` makes graphs for; trt-rtx runs those of trt."""
SERVICES = {
    "open reference": "edge_attn.models.reference:open_checkpoint",
    "record reference": "edge_attn.models.reference:record_live",
    "verify": "edge_attn.runtimes.verify:check_on",
    "export module": "edge_attn.export.pipeline:export_module",
}
"""What one room asks of another that it does not import."""
TASKS = {"seq2seq": "edge_attn.runtimes.translate:Translator"}
FAMILIES = {"seq2seq": "edge_attn.models.seq2seq:Seq2Seq"}
ATTENTIONS = {
    "additive": "edge_attn.models.attention:Additive",
    "concat": "edge_attn.models.attention:Additive",
    "dot": "edge_attn.models.attention:Dot",
    "general": "edge_attn.models.attention:General",
    "scaled": "edge_attn.models.attention:Scaled",
    "location": "edge_attn.models.location:Location",
    "pooling": "edge_attn.models.pooling:PooledAttention",
    "multi-head": "edge_attn.models.multi_head:MultiHead",
    "keras-dot": "edge_attn.models.keras:KerasDot",
    "keras-concat": "edge_attn.models.keras:KerasConcat",
    "keras-additive": "edge_attn.models.keras:KerasAdditive",
    "none": "edge_attn.models.attention:NoAttention",
}
FOCUSES = {
    "local-m": "edge_attn.models.local:Monotonic",
    "local-p": "edge_attn.models.local:Predictive",
    "hard": "edge_attn.models.hard:Hard",
    "coverage": "edge_attn.models.coverage:Coverage",
}
"""What goes around an attention that has energies."""
CELLS = {
    "gru": "edge_attn.models.recurrent:GruCell",
    "lstm": "edge_attn.models.recurrent:LstmCell",
    "lstmn": "edge_attn.models.lstmn:LstmnCell",
}
"""The decoder's."""
LAYERS = {
    "gru": "edge_attn.models.recurrent:RecurrentLayer",
    "lstm": "edge_attn.models.recurrent:RecurrentLayer",
    "lstmn": "edge_attn.models.lstmn:LstmnLayer",
}
"""The encoder's, by the same names; a row is made with its own name and its sizes."""
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
    "sentencepiece": "edge_attn.text:SentencePieceTokenizer",
    "words": "edge_attn.text:WordTokenizer",
    "characters": "edge_attn.text:CharacterTokenizer",
}

EXTRAS = {
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "sacrebleu": "evaluate",
    "h5py": "keras",
}
"""The extra that brings each optional package."""
OF_RUNTIMES = {**EXTRAS, "onnx": "optimize"}
"""The same for what the device side needs."""

HOUSE = Path(__file__).resolve().parent.parent


def resolve(kind: str, table: Mapping[str, str], name: str) -> Any:
    """What `table[name]` names.

    Raises:
        UsageError: there is no such row; the sentence lists the known ones.
        MissingExtraError: the row needs a package that is not installed.
    """
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}")
    module_name, _, attribute = table[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = OF_RUNTIMES if module_name.startswith("edge_attn.runtimes.") else EXTRAS
        if missing in extras:
            raise MissingExtraError(missing, extras[missing]) from error
        raise
    return getattr(module, attribute)
