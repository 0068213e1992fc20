"""Execution of bundles on ONNX Runtime and TensorRT, and the commands that do it."""

import edge_attn  # noqa: F401  # first: it turns off the telemetry of ONNX Runtime
