"""A runtime on the GPU of this machine, or a skipped test with the reason why it is unavailable."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.errors import EdgeAttnError, InputError, NotTestedError
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.trt.api import load_tensorrt
from edge_attn.spec import Runtime
from edge_attn.text.tokenizers import BOS

FAILURE = re.compile(r"^CUDA failed in|(?i:illegal|misaligned|launch failure|invalid (value|argument|resource))")
"""Messages of CUDA about a wrong call or a faulty kernel, which are always defects."""
NO_KERNEL = re.compile(r"(?i)no kernel image|NoKernelImage")
"""Messages about a library without code for this GPU."""
OTHER_GPU = re.compile(r"(?i)compute capabilit|(unsupported|not supported)[^.;]{0,40}\b(sm|gpu|device|architecture)")
"""Messages of the builder about an unsupported GPU."""


def skip_where_absent(name: str) -> None:
    """Skip the test if the runtime's library is not installed."""
    try:
        if name == "ort-cuda":
            from edge_attn.runtimes.ort.cuda import OrtCuda, provider_fault

            fault = provider_fault(OrtCuda.required_provider)
        else:
            load_tensorrt(rtx=name == "trt-rtx")
            fault = None
    except NotTestedError as error:
        fault = str(error)
    if fault is not None:
        pytest.skip(f"needs an NVIDIA GPU with {name}: {fault}")


def open_or_skip(bundle: Bundle, name: str, options: RuntimeOptions) -> Runtime:
    """Open the runtime and run one encoder and one step. Skip the test if this machine or GPU cannot run it."""
    with contextlib.ExitStack() as resources:
        try:
            runtime = open_runtime(bundle, name, options)
            resources.callback(runtime.close)
            decoding = StepDecoder(runtime, [[5, 3]])
            decoding.read(decoding.step(np.full((1, 1), BOS), np.zeros((1, 1), np.int64)), "candidates")
        except (NotTestedError, InputError) as error:
            if not is_unavailable(error):
                raise
            pytest.skip(f"needs an NVIDIA GPU with {name}: {error}")
        resources.pop_all()
    return runtime


def is_unavailable(error: EdgeAttnError) -> bool:
    """Return whether the error is about a missing runtime or GPU, and not about one that fails."""
    text = str(error)
    if isinstance(error, InputError):
        return bool(OTHER_GPU.search(text))
    return bool(NO_KERNEL.search(text)) or not FAILURE.search(text)
