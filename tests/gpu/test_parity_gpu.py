"""Parity on an NVIDIA GPU: every level of `verify` holds for every GPU runtime in every precision.

Without a GPU these tests are skipped, and no other test shows what a GPU computes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from on_a_gpu import open_or_skip, skip_where_absent
from paths import EMBEDDED_BUNDLE

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import NotTestedError
from edge_attn.parity import reader
from edge_attn.registry import RUNTIME_PRECISIONS
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import Runtime
from edge_attn.text.tokenizers import BOS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_gpu")]

GPU_RUNTIMES = ("ort-cuda", "trt", "trt-rtx")
CASES = [(runtime, precision) for runtime in GPU_RUNTIMES for precision in RUNTIME_PRECISIONS[runtime]]
TARGETS = {"trt-rtx": "trt"}
"""Target whose graphs a runtime runs, if it differs from the runtime."""
RUNS, MAX_GROWTH = 60, 1 << 18
"""Searches, and allowed bytes per search; other programs of a Jetson use the same memory."""

Open = Callable[[str, str, str], tuple[Bundle, Runtime]]


@pytest.fixture(scope="module")
def optimized(toy_bundle, tmp_path_factory) -> Callable[[str, str, str], Bundle]:
    """Return copies of the bundles with the graphs for a runtime and precision, each optimized once."""
    folder = tmp_path_factory.mktemp("optimized")
    embedded = EMBEDDED_BUNDLE

    def optimized_bundle(which: str, runtime: str, precision: str) -> Bundle:
        path = folder / f"{which}.zip"
        if not path.exists():
            shutil.copy({"toy": toy_bundle, "embedded": embedded}[which], path)
        target = TARGETS.get(runtime, runtime)
        if f"{target}-{precision}" not in Bundle.open(path).manifest.targets:
            pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx writes the target's graphs")
            from edge_attn.runtimes.optimize.optimize import optimize

            optimize(path, target, precision, log=lambda line: None)
        return Bundle.open(path)

    return optimized_bundle


@pytest.fixture
def opened(optimized, tmp_path_factory) -> Iterator[Open]:
    """Open a bundle and a runtime on it, and close it afterwards. The test is skipped without such a runtime.

    Only the first runtime of a test may be unavailable.
    """
    running: list[Runtime] = []
    engines = tmp_path_factory.getbasetemp() / "engines"

    def start(which: str, runtime: str, precision: str) -> tuple[Bundle, Runtime]:
        skip_where_absent(runtime)
        bundle = optimized(which, runtime, precision)
        open_ = open_runtime if running else open_or_skip
        running.append(open_(bundle, runtime, RuntimeOptions(precision=precision, cache_dir=engines)))
        return bundle, running[-1]

    yield start
    for runtime in running:
        runtime.close()


@pytest.mark.parametrize("which", ["toy", "embedded"])
@pytest.mark.parametrize(("runtime", "precision"), CASES)
def test_every_level_holds(opened: Open, which: str, runtime: str, precision: str):
    bundle, running = opened(which, runtime, precision)
    report = check(bundle, running, reader.load(bundle))
    assert report.verdict == "holds", str(report)
    assert (report.runtime, report.precision) == (runtime, precision)
    assert "CPUExecutionProvider in place of" not in report.provider


def test_ort_cuda_outputs_stay_on_the_device(opened: Open):
    _, running = opened("toy", "ort-cuda", "fp32")
    assert running.provider.startswith("CUDAExecutionProvider")
    decoding = StepDecoder(running, [[5, 6, 3], [5, 3]])
    outputs = decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
    for name, value in {**decoding.encoded, **outputs}.items():
        assert value.device_name() == "cuda", name


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_device_memory_does_not_grow(opened: Open, runtime: str):
    """Compare free memory after RUNS searches and after as many again."""
    from edge_attn.runtimes.trt.cudart import open_cuda

    bundle, running = opened("toy", runtime, "fp32")
    try:
        cuda = open_cuda()
    except NotTestedError as error:
        pytest.skip(f"needs an NVIDIA GPU with libcudart: {error}")
    sources = reader.load(bundle).sources[:8]
    free = []
    for _ in range(2):
        for _ in range(RUNS):
            search(running, sources, SearchConfig(beam=4))
        free.append(cuda.memory()[0])
    assert free[0] - free[1] < RUNS * MAX_GROWTH


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_runtime_opens_again_after_close(opened: Open, runtime: str):
    bundle, running = opened("toy", runtime, "fp32")
    running.close()
    _, again = opened("toy", runtime, "fp32")
    assert check(bundle, again, reader.load(bundle), ("L3",)).verdict == "holds"
