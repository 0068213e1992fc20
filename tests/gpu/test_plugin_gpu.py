"""The step engine with the plugin and the inlined one both pass verify, and their times are printed.

Needs a GPU, TensorRT 10.13 or newer and a CUDA compiler. A user gets the faster engine.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from on_a_gpu import open_or_skip
from paths import EMBEDDED_BUNDLE

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.parity import reader
from edge_attn.registry import RUNTIME_PRECISIONS
from edge_attn.runtimes.trt import autotune
from edge_attn.runtimes.verification.verify import check

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_gpu")]

FORCED = {"with": float("inf"), "without": 1e-9}
"""MAX_TIME_RATIO at which the plugin always runs, and never."""
NO_PLUGIN = re.compile(
    "takes no ahead-of-time plugin|plugins of .* do not load here|CUDA compiler|driver, of CUDA|no PTX"
)
"""Reason of a machine on which no plugin can be built."""


@pytest.mark.parametrize("precision", RUNTIME_PRECISIONS["trt"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_both_engines_hold_and_times_are_printed(toy_bundle, tmp_path, monkeypatch, capsys, which: str, precision: str):
    pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx makes the target's graphs")
    from edge_attn.runtimes.optimize.optimize import optimize

    source = {"toy": toy_bundle, "embedded": EMBEDDED_BUNDLE}[which]
    path = Path(shutil.copy(source, tmp_path / f"{which}.zip"))
    options = RuntimeOptions(precision=precision, cache_dir=tmp_path)
    optimize(path, "trt", precision, plugins=("AdditiveAttention",), log=lambda line: None)
    open_or_skip(Bundle.open(path), "trt", options).close()
    for expected, ratio in FORCED.items():
        monkeypatch.setattr(autotune, "MAX_TIME_RATIO", ratio)
        lines: list[str] = []
        assert optimize(path, "trt", precision, build=True, cache_dir=tmp_path, log=lines.append) == 0, lines
        [line] = [line for line in lines if " runs step with" in line]
        if NO_PLUGIN.search(line):
            pytest.skip(f"needs an NVIDIA GPU with a plugin: {line}")
        bundle = Bundle.open(path)
        runtime = open_or_skip(bundle, "trt", options)
        report = check(bundle, runtime, reader.load(bundle))
        runtime.close()
        assert report.verdict == "holds", str(report)
        assert f"step {expected} the plugin AdditiveAttention" in report.provider, line
        assert bundle.manifest.targets[f"trt-{precision}"].settings["plugins"]["measured"]["graphs"]["step"]["timings"]
        with capsys.disabled():
            print(f"\n{line} [forced; {runtime.provider}]")
