"""Export a checkpoint to a bundle."""

import edge_attn  # noqa: F401  # first: it configures ONNX Runtime
