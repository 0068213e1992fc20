"""Log-probabilities of converted graphs, and the range of their activations, on golden or other sentences.

`with_graphs` replaces the graphs of a bundle, so that everything that runs a bundle runs them too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding import batching
from edge_attn.decoding.decoder import teacher_force
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity.golden import Golden
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.spec import GraphSpec, Runtime, TensorSpec, Value
from edge_attn.text import pipeline

Models = Mapping[str, onnx.ModelProto]

SENTENCES, STEPS = 16, 8
"""Sentences of the golden data, and steps of each, on which the sensitivity of one node is measured."""
RANGE = "range."
"""Prefix of an added graph output: the largest magnitude of a tensor."""


def with_graphs(
    bundle: Bundle, models: Models, precision: str, scalars: Mapping[str, Sequence[str]] | None = None
) -> Bundle:
    """Return `bundle` with other graphs.

    Args:
        bundle: the bundle.
        models: a graph for each of the bundle's.
        precision: precision of these graphs.
        scalars: fp32 scalars by graph, outputs beside the bundle's own.
    """
    specs, files = {}, bundle.files()
    for name, spec in bundle.manifest.graphs.items():
        added = [TensorSpec(output, "float32", ()) for output in (scalars or {}).get(name, ())]
        specs[name] = dataclasses.replace(spec, outputs=(*spec.outputs, *added))
        files[spec.file] = models[name].SerializeToString()
    tolerances = bundle.manifest.tolerances if precision == bundle.manifest.precision else {}
    manifest = dataclasses.replace(
        bundle.manifest, precision=precision, graphs=specs, tolerances=tolerances, targets={}
    )
    return Bundle(bundle.path, manifest, files)


def log_probs(bundle: Bundle, models: Models, golden: Golden, options: RuntimeOptions) -> np.ndarray:
    """Return log-probabilities (rows, vocab) of the first steps along the reference's tokens of a few golden sentences.

    Args:
        bundle: the bundle.
        models: a graph for each of the bundle's.
        golden: its golden data.
        options: options of the runtime ort-cpu.
    """
    runtime = OrtCpu(with_graphs(bundle, models, "fp32"), options)
    rows = np.linspace(0, len(golden.sources) - 1, min(SENTENCES, len(golden.sources))).astype(int)
    steps = teacher_force(runtime, [golden.sources[i] for i in rows], [golden.greedy[i].tokens for i in rows])
    step_log_probs = [runtime.numpy(outputs["log_probs"])[:, 0] for _, outputs in itertools.islice(steps, STEPS)]
    return np.concatenate(step_log_probs)


def activation_ranges(
    bundle: Bundle,
    models: Models,
    tensors: Mapping[str, Iterable[str]],
    sentences: Sequence[str],
    options: RuntimeOptions,
) -> dict[str, dict[str, float]]:
    """Return the largest magnitude of tensors while sentences are translated greedily, by graph and tensor.

    Args:
        bundle: the bundle.
        models: a graph for each of the bundle's, in fp32.
        tensors: names of tensors, by graph.
        sentences: source sentences.
        options: options of the runtime ort-cpu.
    """
    measuring = {name: _with_ranges(model, tensors[name]) for name, model in models.items()}
    scalars = {name: [f"{RANGE}{tensor}" for tensor in tensors[name]] for name in models}
    recorder = RangeRecorder(OrtCpu(with_graphs(bundle, measuring, "fp32", scalars), options))
    text, max_source = bundle.text(), bundle.manifest.max_source
    sources = sorted((pipeline.encode_truncated(text, sentence, max_source)[0] for sentence in sentences), key=len)
    batching.search_batches(recorder, sources, SearchConfig(beam=1, max_length=2 * max_source))
    return recorder.ranges


class RangeRecorder:
    """Runtime that removes the added outputs and records their maxima; a NaN stays NaN."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.name, self.provider, self.precision = inner.name, inner.provider, inner.precision
        self.max_batch, self.max_beam = inner.max_batch, inner.max_beam
        self.graphs: Mapping[str, GraphSpec] = inner.graphs
        self.ranges: dict[str, dict[str, float]] = {name: {} for name in inner.graphs}

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        outputs = self._inner.run(graph, inputs)
        ranges = self.ranges[graph]
        for name in [name for name in outputs if name.startswith(RANGE)]:
            tensor = name.removeprefix(RANGE)
            ranges[tensor] = float(np.maximum(self.numpy(outputs.pop(name)), ranges.get(tensor, 0.0)))
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        return self._inner.numpy(value)

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        return self._inner.select_rows(value, index)

    def close(self) -> None:
        self._inner.close()


def _with_ranges(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Return `model` with one more output for each tensor: its largest magnitude."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    for tensor in tensors:
        name = f"{RANGE}{tensor}"
        measuring.graph.node.append(onnx.helper.make_node("Abs", [tensor], [f"abs.{tensor}"]))
        measuring.graph.node.append(onnx.helper.make_node("ReduceMax", [f"abs.{tensor}"], [name], keepdims=0))
        measuring.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    return measuring
