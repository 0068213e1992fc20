"""A graph that loads and does not run as described is a bad bundle, with the graph and the node named."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

from bad_graphs import RUN_ERRORS, bundle_with_graph, bundle_with_string_output

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.errors import BundleError, UsageError
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.ort.cuda import OrtCuda
from edge_attn.runtimes.ort.run_errors import run_error
from edge_attn.runtimes.ort.watchdog import Watchdog
from edge_attn.text.tokenizers import BOS


class OrtCudaOnCpu(OrtCuda):
    device = "cpu"
    required_provider = "CPUExecutionProvider"
    provider_options = {}  # noqa: RUF012


@pytest.fixture(scope="module")
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.mark.parametrize(
    ("runtime", "name"),
    [*((OrtCpu, name) for name in RUN_ERRORS), (OrtCudaOnCpu, "an endless loop"), (OrtCudaOnCpu, "an axis too long")],
)
def test_graph_that_does_not_run_is_a_bad_bundle(bundle, runtime, name):
    change, message = RUN_ERRORS[name]
    options = RuntimeOptions(threads=1, max_run_seconds=1)
    opened = runtime(bundle_with_graph(bundle, "step", change), options)
    decoding = StepDecoder(opened, [[5, 6, 3], [5, 3]])
    with pytest.raises(BundleError, match=message) as caught:
        decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
    assert "graphs/step.onnx does not run" in str(caught.value)
    assert caught.value.exit_code == 4


def test_text_as_output_is_refused_at_opening(bundle):
    with pytest.raises(BundleError, match=r"step.onnx: output log_probs has the type tensor\(string\), expected"):
        OrtCpu(bundle_with_string_output(bundle))


@pytest.mark.parametrize("verb", ["verify", "translate", "score"])
def test_endless_loop_ends_every_verb_with_one_line(bundle, edge_attn_cli, tmp_path, toy_pairs, verb, capfd):
    changed = bundle_with_graph(bundle, "step", RUN_ERRORS["an endless loop"][0])
    path = tmp_path / "loop.zip"
    write_bundle(path, changed.manifest, changed.files())
    arguments = {"verify": [path], "translate": [path, "the cat"], "score": [path, toy_pairs]}[verb]
    options = ["--threads", 1, "--max-run-seconds", 0.5]
    edge_attn_cli(verb, *arguments, *options, code=4, error="was stopped after 0.5 seconds; if the machine is only")
    assert capfd.readouterr() == ("", "")  # ONNX Runtime itself prints nothing


def test_error_of_onnx_runtime_names_the_node_without_its_sources():
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Tile node. Name:'big' Status "
        "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of "
        "size 3600000000\n"
    )
    assert str(run_error("b: g.onnx", error, 20.0)) == (
        "b: g.onnx does not run: node big (Tile): the memory of this machine is too small: Failed to allocate memory "
        "for requested buffer of size 3600000000; export the bundle again"
    )
    assert "node without a name (Mul): bad" in str(
        run_error("b", RuntimeError("while running Mul node. Name:'' Status Message: bad"), 1)
    )
    assert "does not run: the graph: other; " in str(run_error("b", RuntimeError("[ONNXRuntimeError] : other"), 1))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_time_limit_that_is_not_positive_is_refused(seconds):
    with pytest.raises(UsageError, match="`max_run_seconds` must be positive"):
        RuntimeOptions(max_run_seconds=seconds)


def test_watchdog_ends_only_the_runs_that_take_too_long():
    watchdog = Watchdog(0.3)
    late, before = watchdog.begin(), threading.active_count()
    early = watchdog.begin()
    watchdog.end(early)
    deadline = time.monotonic() + 30
    while not late.terminate and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (late.terminate, early.terminate) == (True, False)
    watchdog.end(late)
    watchdog.end(watchdog.begin())
    assert threading.active_count() == before  # one thread for all runs


def test_watchdog_watches_after_a_fork():
    watchdog = Watchdog(0.2)
    watchdog.end(watchdog.begin())
    child = os.fork()
    if child == 0:
        late = watchdog.begin()
        for _ in range(600):
            if late.terminate:
                os._exit(0)
            time.sleep(0.05)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
