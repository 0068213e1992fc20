"""What is supported, got out by doing it, as the README's table: python tests/tools/support_table.py

Every tiny bundle of tests/data/kinds is optimized for every target and precision; what comes out is verified with ONNX
Runtime on the CPU, and what is for TensorRT is parsed, linted and built with TensorRT-RTX on the CPU, with the real
profiles. Nothing is looked up, nothing needs a GPU, and it takes some minutes. Rows that differ in their
attention and cell alone are one row.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import EdgeAttnError, InputError, ParityError
from edge_attn.parity import golden
from edge_attn.registry import TARGETS, resolve
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt.api import TensorRT, load_tensorrt
from edge_attn.runtimes.trt.builder import BuildConfig, build_engine
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec

KINDS = Path(__file__).resolve().parents[1] / "data" / "kinds"
HEAD = ("Family", "Attention × cell", "Target", "Precision", "Parses", "Builds", "Runs", "Verified")
NONE = "-"
ELSEWHERE = "needs a GPU"


@dataclass(frozen=True)
class Support:
    """One target in one precision."""

    target: str
    precision: str
    parses: str = NONE
    builds: str = NONE
    runs: str = ELSEWHERE
    verified: str = NONE
    """The levels that hold."""


def supports(path: Path, tensorrt: TensorRT) -> Iterator[Support]:
    """What holds of the bundle at `path`, which is optimized in place."""
    portable = Bundle.open(path)
    report = check(portable, OrtCpu(portable), golden.load(portable.read))
    held = " ".join(level.name for level in report.levels if level.status == "holds")
    yield Support("ort-cpu", "fp32", runs="yes", verified=held)
    for target in TARGETS:
        recipe = resolve("target", TARGETS, target)
        for precision in recipe.precisions:
            try:
                optimize(path, target, precision, threads=1, say=lambda line: None)
            except EdgeAttnError as error:
                yield Support(target, precision, runs=NONE, verified=_refused(error))
                continue
            opened = Bundle.open(path)
            made = opened.target(target, precision)
            levels = made.verification["levels"].items()
            verified = " ".join(name for name, status in levels if status == "holds")
            parsed = built = NONE
            if recipe.engines:
                graphs = {opened.read(spec.file): spec for spec in made.graphs.values()}
                parsed = _first("yes", *(parses(tensorrt, model) for model in graphs))
                built = _first("yes", *(builds(tensorrt, opened, model, spec) for model, spec in graphs.items()))
            yield Support(target, precision, parsed, built, verified=verified)


def parses(tensorrt: TensorRT, model: bytes) -> str:
    """`yes`, or what TensorRT's parser says against it."""
    trt = tensorrt.trt
    builder = trt.Builder(tensorrt.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, tensorrt.log)
    if parser.parse(model):
        return "yes"
    return _no(parser.get_error(0).desc())


def builds(tensorrt: TensorRT, bundle: Bundle, model: bytes, spec: GraphSpec) -> str:
    """`yes`, or what the lints or the builder say against it."""
    config = BuildConfig()
    profiles = config.buckets.profiles(spec, bundle.manifest.max_source)
    try:
        build_engine(tensorrt, model, spec, profiles, config, lambda *said: None)
    except InputError as error:
        return _no(str(error))
    return "yes"


def _no(said: str) -> str:
    return f"no: {' '.join(said.split())}"


def _refused(error: EdgeAttnError) -> str:
    failed = [line for line in str(error).splitlines() if ": fails" in line] if isinstance(error, ParityError) else []
    return f"no: {', '.join(line.split()[0] for line in failed) or error}"


def _first(otherwise: str, *said: str) -> str:
    return next((words for words in said if words != otherwise), otherwise)


def table(found: dict[tuple[str, str, str], list[Support]]) -> str:
    """Markdown; `found` by family, attention and cell."""
    rows: dict[tuple[str, Support], dict[str, list[str]]] = {}
    for (family, attention, cell), supported in found.items():
        for support in supported:
            rows.setdefault((family, support), {}).setdefault(cell, []).append(attention)
    order = {
        (support.target, support.precision): i for i, support in enumerate(s for many in found.values() for s in many)
    }
    lines = [HEAD, ("---",) * len(HEAD)]
    for (family, s), cells in sorted(rows.items(), key=lambda row: order[row[0][1].target, row[0][1].precision]):
        lines.append((family, _kinds(cells), s.target, s.precision, s.parses, s.builds, s.runs, s.verified))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _kinds(cells: dict[str, list[str]]) -> str:
    """`additive, dot × gru, lstm`; cells with other attentions after a semicolon."""
    by_attentions: dict[str, list[str]] = {}
    for cell, attentions in sorted(cells.items()):
        by_attentions.setdefault(", ".join(sorted(attentions)), []).append(cell)
    return "; ".join(f"{attentions} × {', '.join(some)}" for attentions, some in by_attentions.items())


def legend(tensorrt: TensorRT) -> str:
    """What each column rests on."""
    return "\n".join(
        (
            f"- Parses, Builds: {tensorrt.name} on a CPU, with the profiles of the default buckets.",
            "- Runs: `needs a GPU` was never executed by this project; `tests/gpu` does it on a machine that has one.",
            "- Verified: the levels of `verify` that hold of the very graphs that the target gets, with ONNX Runtime "
            "on a CPU.",
        )
    )


def find() -> dict[tuple[str, str, str], list[Support]]:
    """Of every kind, two at a time, each in a process of its own."""
    kinds = sorted(KINDS.glob("*.zip"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return dict(pool.map(find_one, kinds))


def find_one(kind: Path) -> tuple[tuple[str, str, str], list[Support]]:
    attention, _, cell = kind.stem.rpartition("-")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, kind.name)
        shutil.copy(kind, copy)
        family = Bundle.open(copy).manifest.family
        return (family, attention, cell), list(supports(copy, load_tensorrt(rtx=True)))


def text() -> str:
    """The table and its legend, as the README has them."""
    return f"{table(find())}\n\n{legend(load_tensorrt(rtx=True))}\n"


if __name__ == "__main__":
    print(text(), end="")
