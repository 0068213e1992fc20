"""Print the table of supported targets in docs/targets.md.

    python tests/tools/support_table.py

Every small bundle of tests/data/kinds is optimized for every target and precision. The result is verified with ONNX
Runtime on the CPU. Graphs for TensorRT are also parsed, linted and built with TensorRT-RTX on the CPU, with the default
profiles. Nothing needs a GPU, and it takes some minutes. Kinds with equal results share a row.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import EdgeAttnError, InputError, ParityError
from edge_attn.parity import reader
from edge_attn.registry import TARGETS, resolve
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt.api import TensorRT, load_tensorrt
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec

KINDS = Path(__file__).resolve().parents[1] / "data" / "kinds"
HEAD = ("Family", "Kinds: attention × cell", "Target", "Precision", "Parses", "Builds", "Runs", "Verified")
NONE = "-"
ELSEWHERE = "needs a GPU"


@dataclass(frozen=True)
class Support:
    """Support of one target in one precision."""

    target: str
    precision: str
    parses: str = NONE
    builds: str = NONE
    runs: str = ELSEWHERE
    verified: str = NONE
    """Levels that hold."""


Kind: TypeAlias = tuple[str, str, str]
"""Family, attention and cell."""
Results: TypeAlias = dict[Kind, list[Support]]


def supports(path: Path, tensorrt: TensorRT) -> Iterator[Support]:
    """Yield the support of each target and precision for the bundle at `path`, which is optimized in place."""
    portable = Bundle.open(path)
    report = check(portable, OrtCpu(portable), reader.load(portable))
    levels = " ".join(level.name for level in report.levels if level.status == "holds")
    yield Support("ort-cpu", "fp32", runs="yes", verified=levels)
    for name in TARGETS:
        recipe = resolve("target", TARGETS, name)
        for precision in recipe.precisions:
            try:
                optimize(path, name, precision, threads=1, log=lambda line: None)
            except EdgeAttnError as error:
                yield Support(name, precision, runs=NONE, verified=_refusal(error))
                continue
            bundle = Bundle.open(path)
            target = bundle.target(name, precision)
            verified = " ".join(level for level, status in target.verification["levels"].items() if status == "holds")
            parsed = built = NONE
            if recipe.engines:
                graphs = {bundle.read(spec.file): spec for spec in target.graphs.values()}
                parsed = _first_failure(parses(tensorrt, model) for model in graphs)
                built = _first_failure(builds(tensorrt, bundle, model, spec) for model, spec in graphs.items())
            yield Support(name, precision, parsed, built, verified=verified)


def parses(tensorrt: TensorRT, model: bytes) -> str:
    """Return `yes`, or the first error of TensorRT's parser."""
    trt = tensorrt.trt
    builder = trt.Builder(tensorrt.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, tensorrt.log)
    if parser.parse(model):
        return "yes"
    return _failure(parser.get_error(0).desc())


def builds(tensorrt: TensorRT, bundle: Bundle, model: bytes, spec: GraphSpec) -> str:
    """Return `yes`, or the error of the lints or of the builder."""
    config = BuildConfig()
    profiles = config.buckets.profiles(spec, bundle.manifest.max_source)
    try:
        build_engine(tensorrt, model, spec, profiles, config, lambda *lines: None)
    except InputError as error:
        return _failure(str(error))
    return "yes"


def _failure(message: str) -> str:
    return f"no: {' '.join(message.split())}"


def _first_failure(answers: Iterable[str]) -> str:
    return next((answer for answer in answers if answer != "yes"), "yes")


def _refusal(error: EdgeAttnError) -> str:
    failed = [line for line in str(error).splitlines() if ": fails" in line] if isinstance(error, ParityError) else []
    return f"no: {', '.join(line.split()[0] for line in failed) or error}"


def table(results: Results) -> str:
    """Return the Markdown table of `results`."""
    rows: dict[tuple[str, Support], list[Kind]] = {}
    for kind, supported in results.items():
        for support in supported:
            rows.setdefault((kind[0], support), []).append(kind)
    order = list(dict.fromkeys((support.target, support.precision) for many in results.values() for support in many))
    lines = [HEAD, ("---",) * len(HEAD)]
    for (family, s), kinds in sorted(
        rows.items(), key=lambda row: order.index((row[0][1].target, row[0][1].precision))
    ):
        complete = kinds == [kind for kind in results if kind[0] == family]
        names = "all" if complete else kind_names(kinds)
        lines.append((family, names, s.target, s.precision, s.parses, s.builds, s.runs, s.verified))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kind_names(kinds: Iterable[Kind]) -> str:
    """Return `additive, dot × gru, lstm`; cells with other attentions follow a semicolon."""
    attentions: dict[str, list[str]] = {}
    for _, attention, cell in kinds:
        attentions.setdefault(cell, []).append(attention)
    cells: dict[str, list[str]] = {}
    for cell, names in sorted(attentions.items()):
        cells.setdefault(", ".join(sorted(names)), []).append(cell)
    return "; ".join(f"{names} × {', '.join(with_these)}" for names, with_these in cells.items())


def legend(results: Results, tensorrt: TensorRT) -> str:
    """Return the explanation of each column."""
    return "\n".join(
        (
            f"- All: {kind_names(results)}.",
            f"- Parses, Builds: {tensorrt.name} on a CPU, with the profiles of the default buckets.",
            "- Runs: this project has never executed what `needs a GPU`; `tests/gpu/run.py` does so on a GPU.",
            "- Verified: the levels of `verify` that hold for the graphs of the target, with ONNX Runtime on a CPU.",
        )
    )


def try_all() -> Results:
    """Return the support of every kind; two kinds at a time, each in its own process."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return dict(pool.map(try_one, sorted(KINDS.glob("*.zip"))))


def try_one(path: Path) -> tuple[Kind, list[Support]]:
    """Return the kind of the bundle at `path`, and its support."""
    attention, _, cell = path.stem.rpartition("-")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        shutil.copy(path, copy)
        family = Bundle.open(copy).manifest.family
        return (family, attention, cell), list(supports(copy, load_tensorrt(rtx=True)))


def text() -> str:
    """Return the table and its legend, as docs/targets.md has them."""
    results = try_all()
    return f"{table(results)}\n\n{legend(results, load_tensorrt(rtx=True))}\n"


if __name__ == "__main__":
    print(text(), end="")
