"""Export a checkpoint to a bundle."""

import edge_attn  # noqa: F401  # first: it configures ONNX Runtime
from edge_attn.versions import require

require("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
