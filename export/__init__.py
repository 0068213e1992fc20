"""From a checkpoint to a bundle."""

import edge_attn  # noqa: F401  # first, for what it tells ONNX Runtime
