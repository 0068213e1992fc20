"""Runs bundles: ONNX Runtime, TensorRT, and the verbs on them."""

import edge_attn  # noqa: F401  # first, for what it tells ONNX Runtime
