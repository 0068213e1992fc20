"""Mutants of a bundle: planted faults, each of which verify must find, and harmless rewrites, which it must accept.

    python tests/tools/mutants.py BUNDLE [NAME ...]

The hashes of each mutant are right, so that golden data alone decides. Prints the verdict on each, and exits with 1 if
a fault is accepted or a harmless rewrite refused.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Manifest
from edge_attn.bundle.writer import write_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.decoder import vocabulary_sizes
from edge_attn.errors import EdgeAttnError
from edge_attn.runtimes.verification.verify import verify

Files = dict[str, bytes]
Change = Callable[[Manifest, Files], Manifest | None]
GOLDEN_JSON, GOLDEN_NPZ = "golden/golden.json", "golden/golden.npz"
OPTIONS = RuntimeOptions(threads=1)


# ---- changes of a file


def in_graph(name: str, change: Callable[[ModelProto], ModelProto | None]) -> Change:
    """Return a change that rewrites one graph."""

    def rewrite(manifest: Manifest, files: Files) -> None:
        file = manifest.graphs[name].file
        model = onnx.load_model_from_string(files[file])
        files[file] = (change(model) or model).SerializeToString()

    return rewrite


def in_both(change: Callable[[ModelProto], ModelProto | None]) -> Change:
    """Return a change that rewrites both graphs."""

    def rewrite(manifest: Manifest, files: Files) -> None:
        for name in manifest.graphs:
            in_graph(name, change)(manifest, files)

    return rewrite


def in_json(name: str, change: Callable[[Any], Any], **options: Any) -> Change:
    """Return a change of the content of a JSON file."""

    def rewrite(_: Manifest, files: Files) -> None:
        content = json.loads(files[name])
        replacement = change(content)
        files[name] = json.dumps(content if replacement is None else replacement, **options).encode()

    return rewrite


def in_arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Change:
    """Return a change of the golden arrays by name."""

    def rewrite(_: Manifest, files: Files) -> None:
        with np.load(io.BytesIO(files[GOLDEN_NPZ])) as stored:
            arrays = {name: stored[name].copy() for name in stored.files}
        change(arrays)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        files[GOLDEN_NPZ] = data.getvalue()

    return rewrite


def in_manifest(**values: Any) -> Change:
    """Return a change of fields of the manifest."""
    return lambda manifest, _: dataclasses.replace(manifest, **values)


# ---- rows of tables


def row(graph: str, tokens: str, side: int, factor: float | None) -> Change:
    """Return a change of the last row, which few sentences read, of each table that token ids look up.

    Args:
        graph: name of the graph.
        tokens: name of the input with the token ids.
        side: 0 for source entries, 1 for target entries.
        factor: factor of the row; None swaps it with the row before it.
    """

    def rewrite(manifest: Manifest, files: Files) -> None:
        size = vocabulary_sizes(manifest.graphs, "the bundle")[side]
        order, factors = np.arange(size), np.ones((size, 1), np.float32)
        if factor is None:
            order[-2:] = order[-2:][::-1]
        else:
            factors[-1] = factor

        def change(model: ModelProto) -> None:
            for name, values in (("order", order), ("factors", factors)):
                model.graph.initializer.append(numpy_helper.from_array(values, f"mutant.{name}"))
            first = [
                helper.make_node("Gather", ["mutant.order", tokens], ["mutant.index"]),
                helper.make_node("Gather", ["mutant.factors", tokens], ["mutant.factor"]),
            ]
            last = []
            for node in model.graph.node:
                if node.op_type == "Gather" and node.input[1] == tokens:
                    rename(model.graph, node.output[0], value := f"{node.output[0]}.before")
                    node.input[1], node.output[0] = "mutant.index", f"{value}.row"
                    last.append(helper.make_node("Mul", [f"{value}.row", "mutant.factor"], [value]))
            assert last, f"{graph} looks up no table by {tokens}"
            nodes = [*first, *model.graph.node]
            del model.graph.node[:]
            for node in nodes:
                model.graph.node.append(node)
                model.graph.node.extend(n for n in last if n.input[0] in node.output)

        in_graph(graph, change)(manifest, files)

    return rewrite


ROWS = {"zero": 0.0, "NaN": float("nan"), "scaled": 1.1, "swapped": None}


# ---- faults at some shapes


def wrong_at(graph: str, output: str, tensor: str, axis: int, low: int, high: int) -> Change:
    """Return a change that multiplies outputs by 1.5 where the size of an axis is between `low` and `high`.

    Args:
        graph: name of the graph.
        output: beginning of the names of the outputs.
        tensor: beginning of the name of an input with that axis.
        axis: index of the axis.
        low: smallest size with the fault.
        high: largest size with the fault.
    """

    def change(model: ModelProto) -> None:
        names = [value.name for value in model.graph.output if value.name.startswith(output)]
        floats = [v.name for v in model.graph.output if v.name in names and v.type.tensor_type.elem_type == 1]
        source = next(value.name for value in model.graph.input if value.name.startswith(tensor))
        constants = {"axis": [axis], "low": [low], "high": [high]}
        for name, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"mutant.{name}"))
        for name, number in (("right", 1.0), ("wrong", 1.5)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([number], np.float32), f"mutant.{name}"))
        for name in floats:
            rename(model.graph, name, f"{name}.before")
        model.graph.node.extend(
            [
                helper.make_node("Shape", [source], ["mutant.shape"]),
                helper.make_node("Gather", ["mutant.shape", "mutant.axis"], ["mutant.size"]),
                helper.make_node("GreaterOrEqual", ["mutant.size", "mutant.low"], ["mutant.above"]),
                helper.make_node("LessOrEqual", ["mutant.size", "mutant.high"], ["mutant.below"]),
                helper.make_node("And", ["mutant.above", "mutant.below"], ["mutant.inside"]),
                helper.make_node("Where", ["mutant.inside", "mutant.wrong", "mutant.right"], ["mutant.factor"]),
                *(helper.make_node("Mul", [f"{name}.before", "mutant.factor"], [name]) for name in floats),
            ]
        )

    return in_graph(graph, change)


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Rename a tensor at its nodes, not at the graph's inputs and outputs."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new if name == old else name


def fewer_candidates(count: int) -> Change:
    """Return a change that cuts the candidates of a step, with the manifest's description."""

    def change(model: ModelProto) -> None:
        for name, value in (("starts", [0]), ("ends", [count]), ("axes", [2])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"mutant.{name}"))
        cut = ["mutant.starts", "mutant.ends", "mutant.axes"]
        for name in ("candidates", "candidate_ids"):
            rename(model.graph, name, f"{name}.before")
            model.graph.node.append(helper.make_node("Slice", [f"{name}.before", *cut], [name]))
            output = next(value for value in model.graph.output if value.name == name)
            output.type.tensor_type.shape.dim[2].dim_value = count

    def rewrite(manifest: Manifest, files: Files) -> Manifest:
        in_graph("step", change)(manifest, files)
        step = manifest.graphs["step"]
        outputs = tuple(
            dataclasses.replace(t, shape=(*t.shape[:2], count)) if t.name.startswith("candidate") else t
            for t in step.outputs
        )
        return dataclasses.replace(
            manifest, graphs={**manifest.graphs, "step": dataclasses.replace(step, outputs=outputs)}
        )

    return rewrite


def without_mask(model: ModelProto) -> None:
    """Make every position of the memory a real token."""
    rename(model.graph, "memory.mask", "mutant.mask")
    model.graph.node.insert(0, helper.make_node("Not", ["memory.mask"], ["mutant.padding"]))
    model.graph.node.insert(1, helper.make_node("Or", ["memory.mask", "mutant.padding"], ["mutant.mask"]))


# ---- golden data and text


def one_sentence(manifest: Manifest, files: Files) -> None:
    """Cut the golden data down to its first sentence, in all of its parts."""
    content = json.loads(files[GOLDEN_JSON])
    steps, source = len(content["greedy"][0]["tokens"]) + 1, len(content["sources"][0])
    best = content["n_best"][0][0]
    symbols = {"steps": steps, "beam": len(best["tokens"]) + best["finished"]}
    total = len(content["sentences"])

    def cut(arrays: dict[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            group = name.partition(".")[0]
            if name.endswith(".alignment") and group in symbols:
                arrays[name] = values[: symbols[group] * source]
            elif group == "steps":
                arrays[name] = values[:steps]
            elif group == "encoder":
                arrays[name] = values[: 1 if len(values) == total else source]

    in_arrays(cut)(manifest, files)
    for name in ("sentences", "sources", "greedy", "n_best"):
        content[name] = content[name][:1]
    files[GOLDEN_JSON] = json.dumps(content).encode()


def each_hypothesis(**values: Any) -> Change:
    return in_json(GOLDEN_JSON, lambda content: [h.update(values) for hyps in content["n_best"] for h in hyps] and None)


def without_beam(content: Any) -> None:
    content["n_best"] = [hypotheses[:1] for hypotheses in content["n_best"]]


def text_changes(files: Files) -> dict[str, Change]:
    """Return the faults of the text processing, by the kind of tokenizer."""
    if "text/source.json" in files:
        lists = {
            f"two {side} entries swapped": in_json(f"text/{side}.json", swap_last) for side in ("source", "target")
        }
        return {**lists, "lower case": in_json("text/text.json", lambda content: content.update(case="lower"))}
    return {
        "two source pieces swapped": in_pieces(swap_pieces),
        "the score of a piece": in_pieces(lambda model: setattr(model.pieces[-5], "score", model.pieces[-5].score - 2)),
        "a piece unused": in_pieces(lambda model: setattr(model.pieces[-5], "type", 5)),
        "lower case": in_json("text/text.json", lambda content: content.update(case="lower")),
    }


def swap_last(entries: list[str]) -> None:
    entries[-1], entries[-2] = entries[-2], entries[-1]


def in_pieces(change: Callable[[Any], Any]) -> Change:
    """Return a change of the source's SentencePiece model."""

    def rewrite(_: Manifest, files: Files) -> None:
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(files["text/source.model"])
        change(model)
        files["text/source.model"] = model.SerializeToString()

    return rewrite


def swap_pieces(model: Any) -> None:
    first, second = model.pieces[-5], model.pieces[-6]
    first.piece, second.piece = second.piece, first.piece


def faults(bundle: Bundle) -> dict[str, Change]:
    """Return the changes that verify must find, by name."""
    longest = bundle.manifest.max_source
    length = (longest // 5 + 1, longest - 1)
    planted: dict[str, Change] = {}
    for side, (graph, tokens) in enumerate((("encoder", "source"), ("step", "tokens"))):
        for name, factor in ROWS.items():
            planted[f"a row of {graph} {name}"] = row(graph, tokens, side, factor)
    for graph, output, tensor in (("encoder", "memory.", "source"), ("step", "next_", "tokens")):
        for low, high in ((33, 33), (4, 31), (64, 64), (50, 50)):
            planted[f"{graph} wrong at batches {low} to {high}"] = wrong_at(graph, output, tensor, 0, low, high)
    for beam in (2, 4, 5):
        planted[f"states wrong at a beam of {beam}"] = wrong_at("step", "next_", "tokens", 1, beam, beam)
        planted[f"log-probabilities wrong at a beam of {beam}"] = wrong_at("step", "log_probs", "tokens", 1, beam, beam)
    planted["encoder wrong at some lengths"] = wrong_at("encoder", "memory.", "source", 1, *length)
    planted["encoder wrong at one length"] = wrong_at("encoder", "memory.", "source", 1, length[1], length[1])
    planted["step wrong at some lengths"] = wrong_at("step", "next_", "memory.mask", 1, *length)
    planted["candidates cut"] = fewer_candidates(6 if longest > 8 else 3)
    if any(tensor.name == "alignment" for tensor in bundle.manifest.graphs["step"].outputs):
        planted["mask ignored"] = in_graph("step", without_mask)
        planted["beam alignment lost"] = in_arrays(lambda arrays: arrays.pop("beam.alignment"))
    planted["fp32 called int8"] = in_manifest(precision="int8")
    planted["fp32 called fp16"] = in_manifest(precision="fp16")
    planted["golden data of one sentence"] = one_sentence
    planted["beam results dropped"] = in_json(GOLDEN_JSON, without_beam)
    planted["noise NaN"] = each_hypothesis(noise=float("nan"))
    planted["noise infinite"] = each_hypothesis(noise=float("inf"))
    planted["noise of steps infinite"] = in_arrays(lambda arrays: arrays["steps.noise"].fill(np.inf))
    planted["tokens out of range"] = in_json(GOLDEN_JSON, lambda content: content["sources"][0].__setitem__(0, 10**6))
    return {**planted, **text_changes(bundle.files())}


# ---- harmless rewrites


def renamed(model: ModelProto) -> None:
    for i, tensor in enumerate(list(model.graph.initializer)):
        rename(model.graph, tensor.name, f"weight.{i}")
        tensor.name = f"weight.{i}"


def reordered(model: ModelProto) -> None:
    """Order the nodes otherwise: as late as what reads them allows."""
    nodes, ready, ordered = list(model.graph.node), set(), []
    ready |= {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    while nodes:
        node = next(node for node in reversed(nodes) if {name for name in node.input if name} <= ready)
        nodes.remove(node)
        ordered.append(node)
        ready |= set(node.output)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def with_identity(model: ModelProto) -> None:
    for value in model.graph.output:
        rename(model.graph, value.name, f"{value.name}.before")
        model.graph.node.append(helper.make_node("Identity", [f"{value.name}.before"], [value.name]))


def with_constants(model: ModelProto) -> None:
    """Turn small initializers into Constant nodes."""
    small = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) <= 64]
    for tensor in small:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, node)


def with_metadata(model: ModelProto) -> None:
    helper.set_model_props(model, {"note": "copied"})
    model.producer_name, model.doc_string = "another", "a note"


def without_names(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = node.doc_string = ""


def without_types(model: ModelProto) -> None:
    del model.graph.value_info[:]


def unused_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))


def older(model: ModelProto) -> None:
    model.ir_version = 9


def inlined(model: ModelProto) -> ModelProto:
    return onnx.inliner.inline_local_functions(model)


def folded(model: ModelProto) -> ModelProto:
    from onnxscript import optimizer

    result = optimizer.optimize(inlined(model))
    assert isinstance(result, ModelProto)
    return result


def raw_as_lists(model: ModelProto) -> None:
    """Store small float initializers as numbers in place of raw bytes."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) <= 4096:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, values.shape, values.ravel().tolist()))


def spaced(name: str) -> Change:
    return in_json(name, lambda content: None, indent=4)


HARMLESS: dict[str, Change] = {
    "initializers renamed": in_both(renamed),
    "nodes reordered": in_both(reordered),
    "identity at the outputs": in_both(with_identity),
    "small initializers as constants": in_both(with_constants),
    "metadata added": in_both(with_metadata),
    "node names removed": in_both(without_names),
    "types of inner tensors removed": in_both(without_types),
    "an unused initializer": in_both(unused_initializer),
    "an older IR version": in_both(older),
    "functions inlined": in_both(inlined),
    "constants folded": in_both(folded),
    "numbers in place of raw bytes": in_both(raw_as_lists),
    "inlined and renamed": in_both(lambda model: renamed(result := inlined(model)) or result),
    "golden data spaced otherwise": spaced(GOLDEN_JSON),
    "arrays compressed again": in_arrays(lambda arrays: None),
    "text rules spaced otherwise": spaced("text/text.json"),
    "a model card": lambda _, files: files.update({"MODEL_CARD.md": b"# A model\n"}),
    "provenance removed": in_manifest(provenance={}),
    "verification removed": in_manifest(verification={}),
    "stricter tolerances": in_manifest(tolerances={"L3.score": 9e-5}),
}


# ---- verdicts


def exit_code(bundle: Bundle, change: Change, folder: Path) -> tuple[int, str]:
    """Return the exit code of verify for a changed bundle, and its cause or error."""
    files = dict(bundle.files())
    manifest = change(bundle.manifest, files) or bundle.manifest
    path = folder / "mutant.zip"
    try:
        write_bundle(path, manifest, files, force=True)
        report = verify(path, options=OPTIONS)
    except EdgeAttnError as error:
        return error.exit_code, str(error)
    return report.exit_code, report.cause


def verdicts(bundle: Bundle, names: list[str]) -> Iterator[tuple[str, bool, int, str]]:
    """Yield each mutant's name, whether its verdict is right, its exit code, and the cause."""
    with tempfile.TemporaryDirectory() as folder:
        for changes, expected in ((faults(bundle), (1, 4)), (HARMLESS, (0,))):
            for name, change in changes.items():
                if not names or name in names:
                    code, cause = exit_code(bundle, change, Path(folder))
                    yield name, code in expected, code, cause


def main() -> None:
    bundle, wrong = Bundle.open(sys.argv[1]), 0
    for name, is_right, code, cause in verdicts(bundle, sys.argv[2:]):
        wrong += not is_right
        print(f"{'ok  ' if is_right else 'MISS'} exit {code}  {name}: {cause[:200]}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
