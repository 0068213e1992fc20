"""Build graphs with the installed TensorRT-RTX on a CPU: python tests/support/rtx_builds.py PATH ...

A PATH is a bundle, whose graphs for the target `trt`, or else its portable ones, are built with the profiles of the
default buckets; or an ONNX file with a JSON of its inputs and outputs, whose symbolic axes go from 1 to 32. The
output is one JSON object: the version as `version`, and the engine size or the error of each graph.

Each version needs its own process, because one process cannot load two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import EdgeAttnError
from edge_attn.runtimes.trt.api import TensorRT, load_tensorrt
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine
from edge_attn.runtimes.trt.profiles import Profile
from edge_attn.spec import GraphSpec, TensorSpec


def graphs(path: Path) -> Iterator[tuple[str, bytes, GraphSpec, list[Profile]]]:
    """Yield name, content, spec and profiles of each graph."""
    if path.suffix == ".onnx":
        model = path.read_bytes()
        spec = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        inputs, outputs = (
            [TensorSpec(n, dtype, tuple(shape)) for n, dtype, shape in spec[key]] for key in ("in", "out")
        )
        axes = {axis for tensor in inputs for axis in tensor.shape if isinstance(axis, str)}
        yield (
            path.stem,
            model,
            GraphSpec(path.name, tuple(inputs), tuple(outputs)),
            [Profile(dict.fromkeys(axes, (1, 4, 32)))],
        )
        return
    bundle = Bundle.open(path)
    targets = {target.precision: target.graphs for target in bundle.manifest.targets.values() if target.target == "trt"}
    for name, specs in (targets or {"portable": bundle.manifest.graphs}).items():
        for graph, spec in specs.items():
            profiles = BuildConfig().buckets.profiles(spec, bundle.manifest.max_source)
            yield f"{path.stem} {name} {graph}", bundle.read(spec.file), spec, profiles


def build_size(tensorrt: TensorRT, model: bytes, spec: GraphSpec, profiles: list[Profile]) -> int | str:
    try:
        return len(build_engine(tensorrt, model, spec, profiles, BuildConfig(), lambda share, what: None))
    except EdgeAttnError as error:
        return str(error)


if __name__ == "__main__":
    tensorrt = load_tensorrt(rtx=True)
    results: dict[str, int | str] = {"version": tensorrt.name}
    for argument in sys.argv[1:]:
        for name, model, spec, profiles in graphs(Path(argument)):
            results[name] = build_size(tensorrt, model, spec, profiles)
    print(json.dumps(results))
