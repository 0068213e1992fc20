"""What graphs say, and how large their tensors grow, while a bundle runs on golden or given sentences.

A bundle can be seen with other graphs in the place of its own, so that whatever runs a bundle runs them too.
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
"""Sentences of the golden data, and steps of each, on which the damage of one node is measured."""
LARGEST = "largest."


def view(bundle: Bundle, models: Models, precision: str, more: Mapping[str, Sequence[str]] | None = None) -> Bundle:
    """`bundle` with `models` as its graphs; `more` are fp32 scalars that they give beside its own outputs."""
    specs, files = {}, bundle.files()
    for name, spec in bundle.manifest.graphs.items():
        scalars = [TensorSpec(output, "float32", ()) for output in (more or {}).get(name, ())]
        specs[name] = dataclasses.replace(spec, outputs=(*spec.outputs, *scalars))
        files[spec.file] = models[name].SerializeToString()
    stricter = bundle.manifest.tolerances if precision == bundle.manifest.precision else {}
    manifest = dataclasses.replace(bundle.manifest, precision=precision, graphs=specs, tolerances=stricter, targets={})
    return Bundle(bundle.path, manifest, files)


def log_probs(bundle: Bundle, models: Models, said: Golden, options: RuntimeOptions) -> np.ndarray:
    """What `models` say in the first steps along the reference's tokens of some golden sentences, (rows, vocab)."""
    running = OrtCpu(view(bundle, models, "fp32"), options)
    rows = np.linspace(0, len(said.sources) - 1, min(SENTENCES, len(said.sources))).astype(int)
    steps = teacher_force(running, [said.sources[i] for i in rows], [said.greedy[i].tokens for i in rows])
    found = [running.numpy(outputs["log_probs"])[:, 0] for _, outputs in itertools.islice(steps, STEPS)]
    return np.concatenate(found)


def largest(
    bundle: Bundle,
    models: Models,
    tensors: Mapping[str, Iterable[str]],
    sentences: Sequence[str],
    options: RuntimeOptions,
) -> dict[str, dict[str, float]]:
    """For each graph, the largest magnitude of each of its `tensors` while `sentences` are translated greedily."""
    watched = {name: _with_largest(model, tensors[name]) for name, model in models.items()}
    more = {name: [f"{LARGEST}{tensor}" for tensor in tensors[name]] for name in models}
    running = _Largest(OrtCpu(view(bundle, watched, "fp32", more), options))
    text, longest = bundle.text(), bundle.manifest.max_source
    sources = sorted((pipeline.encode_truncated(text, sentence, longest)[0] for sentence in sentences), key=len)
    batching.search_batches(running, sources, SearchConfig(beam=1, max_length=2 * longest))
    return running.found


class _Largest:
    """A runtime whose graphs say how large some tensors are; it keeps the largest magnitudes, NaN if one is NaN."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.name, self.provider, self.precision = inner.name, inner.provider, inner.precision
        self.max_batch = inner.max_batch
        self.graphs: Mapping[str, GraphSpec] = inner.graphs
        self.found: dict[str, dict[str, float]] = {name: {} for name in inner.graphs}

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        outputs = self._inner.run(graph, inputs)
        found = self.found[graph]
        for name in [name for name in outputs if name.startswith(LARGEST)]:
            tensor = name.removeprefix(LARGEST)
            found[tensor] = float(np.maximum(self.numpy(outputs.pop(name)), found.get(tensor, 0.0)))
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        return self._inner.numpy(value)

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        return self._inner.select_rows(value, index)

    def close(self) -> None:
        self._inner.close()


def _with_largest(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in tensors:
        name = f"{LARGEST}{tensor}"
        made.graph.node.append(onnx.helper.make_node("Abs", [tensor], [f"abs.{tensor}"]))
        made.graph.node.append(onnx.helper.make_node("ReduceMax", [f"abs.{tensor}"], [name], keepdims=0))
        made.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    return made
