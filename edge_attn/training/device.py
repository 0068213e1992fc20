"""Device and precision of a training run."""

from __future__ import annotations

import os

import torch

from edge_attn.errors import NotTestedError, UsageError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """Return the device of this process: "auto" is a CUDA GPU if there is one. Under torchrun each process has its own.

    Raises:
        UsageError: `name` is not one of DEVICES.
        NotTestedError: "cuda", but torch sees no GPU, or fewer than there are processes.
    """
    if name not in DEVICES:
        raise UsageError(f"`device` must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotTestedError(f"torch {torch.__version__} has no CUDA GPU; use --device cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise NotTestedError(
            f"process {index} has no GPU of its own: torch sees {torch.cuda.device_count()}; start fewer processes"
        )
    return torch.device("cuda", index)


def choose_compute(compute: str, device: torch.device) -> str:
    """Return the precision of products, fp32, bf16 or fp16. "auto" is bf16 or fp16 on a GPU, and fp32 on a CPU."""
    if compute != "auto":
        return compute
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def describe(device: torch.device) -> str:
    """Return the device's name and, of a CPU, its threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
