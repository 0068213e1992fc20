"""Runtimes of ONNX Runtime."""

from edge_attn.versions import require

require("onnxruntime")
