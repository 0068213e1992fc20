"""A runtime on this machine's GPU, or the test skipped with the reason why this machine or its GPU has none."""

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

WRONG = re.compile(r"^CUDA failed in|(?i:illegal|misaligned|launch failure|invalid (value|argument|resource))")
"""What CUDA says of a wrong call, or of a kernel that went astray: a defect, wherever it shows."""
NO_CODE = re.compile(r"(?i)no kernel image|NoKernelImage")
"""What is said of a GPU for which a library has no code."""
OTHER_GPU = re.compile(r"(?i)compute capabilit|(unsupported|not supported)[^.;]{0,40}\b(sm|gpu|device|architecture)")
"""The same of an engine that is built."""


def skip_where_absent(name: str) -> None:
    """Skips the test where the runtime's library is not installed, before anything is made for it."""
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
    """The runtime, with one encoder and one step run on it; only what keeps it off this machine or GPU is a skip."""
    with contextlib.ExitStack() as held:
        try:
            running = open_runtime(bundle, name, options)
            held.callback(running.close)
            decoding = StepDecoder(running, [[5, 3]])
            decoding.read(decoding.step(np.full((1, 1), BOS), np.zeros((1, 1), np.int64)), "candidates")
        except (NotTestedError, InputError) as error:
            if not kept_away(error):
                raise
            pytest.skip(f"needs an NVIDIA GPU with {name}: {error}")
        held.pop_all()
    return running


def kept_away(error: EdgeAttnError) -> bool:
    """Whether it says that this machine or GPU has no such runtime, and not that one that runs went wrong."""
    said = str(error)
    if isinstance(error, InputError):
        return bool(OTHER_GPU.search(said))
    return bool(NO_CODE.search(said)) or not WRONG.search(said)
