"""On a GPU with TensorRT 10.13 or newer and a CUDA compiler: the step's engine with the plugin and the one without it
both say what the reference said, and their times are printed. The quicker one is what a user gets.
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
from edge_attn.parity import golden
from edge_attn.registry import RUNTIME_PRECISIONS
from edge_attn.runtimes.trt import autotune as trt_choice
from edge_attn.runtimes.verification.verify import check

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_gpu")]

FORCED = {"with": float("inf"), "without": 0.0}
"""WINS with which the plugin always wins, and never."""
NOT_HERE = re.compile(
    "takes no ahead-of-time plugin|plugins of .* do not load here|CUDA compiler|driver, of CUDA|no PTX"
)
"""What is said where this machine can have no plugin."""


@pytest.mark.parametrize("precision", RUNTIME_PRECISIONS["trt"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_both_engines_hold_and_their_times_are_printed(
    toy_bundle, tmp_path, monkeypatch, capsys, which: str, precision: str
):
    pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx makes the target's graphs")
    from edge_attn.runtimes.optimize.optimize import optimize

    source = {"toy": toy_bundle, "embedded": EMBEDDED_BUNDLE}[which]
    path = Path(shutil.copy(source, tmp_path / f"{which}.zip"))
    optimize(path, "trt", precision, plugins=("AdditiveAttention",), say=lambda line: None)
    bundle = Bundle.open(path)
    for expected, wins in FORCED.items():
        for record in (tmp_path / "engines").glob("tensorrt-choice-*"):
            record.unlink()
        monkeypatch.setattr(trt_choice, "WINS", wins)
        running = open_or_skip(bundle, "trt", RuntimeOptions(precision=precision, cache_dir=tmp_path))
        (said,) = [line for line in capsys.readouterr().err.splitlines() if " runs with" in line]
        if NOT_HERE.search(said):
            running.close()
            pytest.skip(f"needs an NVIDIA GPU with a plugin: {said}")
        report = check(bundle, running, golden.load(bundle.read))
        running.close()
        assert report.verdict == "holds", str(report)
        assert f"step {expected} the plugin AdditiveAttention" in report.provider, said
        assert " ms with it and " in said
        with capsys.disabled():
            print(f"\n{said} [forced; {running.provider}]")
