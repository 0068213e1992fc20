"""The whole export: every model of the family agrees with torch at every shape, in plain ONNX Runtime; a failure leaves
nothing; and a user's own module goes the same way."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import edge_attn
from edge_attn.bundle import FORMAT, Bundle
from edge_attn.config import Config, DataConfig, RuntimeOptions, Seq2SeqConfig, TextConfig, TrainingConfig
from edge_attn.errors import CheckpointError, ExportError, InputError
from edge_attn.models.attention import Additive, General
from edge_attn.models.graphs import graphs
from edge_attn.models.recurrent import RecurrentLayer
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.ops import DOMAIN
from edge_attn.registry import ATTENTIONS
from edge_attn.spec import GraphSpec
from edge_attn.text import Text
from edge_attn.training import checkpoint
from export import checks, lower, pipeline
from export.pipeline import export, graph_model
from export.trace import example_inputs
from runtimes.verify import verify

torch.set_num_threads(1)

SIZES = {"batch": (1, 3, 32), "src": (1, 2, 7, 50, 200)}
PLAIN = """
import sys
import numpy as np, onnxruntime
with np.load(sys.argv[2]) as data:
    inputs = {name: data[name] for name in data.files}
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [one.name for one in session.get_outputs()]
found = {}
for case in sorted({name.partition(" ")[0] for name in inputs}):
    feed = {name.partition(" ")[2]: value for name, value in inputs.items() if name.partition(" ")[0] == case}
    for name, value in zip(names, session.run(names, feed)):
        found[f"{case} {name}"] = value
assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "onnx", "edge_attn", "export", "runtimes"}
np.savez(sys.argv[3], **found)
"""


def said_by_torch(module: nn.Module, spec: GraphSpec, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        said = module(*map(torch.from_numpy, inputs))
    said = [said] if isinstance(said, Tensor) else list(said)
    return {tensor.name: value.numpy() for tensor, value in zip(spec.outputs, said, strict=True)}


def holds_in_plain_onnxruntime(graph: bytes, module: nn.Module, spec: GraphSpec, folder: Path) -> None:
    """In a process with onnxruntime and numpy, without one line of ours."""
    (folder / "graph.onnx").write_bytes(graph)
    inputs, expected = {}, {}
    for case, (batch, src) in enumerate(itertools.product(*SIZES.values())):
        sizes = {"batch": batch, "src": src, "beam": 1 + case % 4, "previous_beam": 1 + case % 3, "tgt": 1 + case % 5}
        values = example_inputs(spec, sizes, seed=case)
        inputs.update({f"{case} {t.name}": value for t, value in zip(spec.inputs, values, strict=True)})
        expected.update({f"{case} {name}": value for name, value in said_by_torch(module, spec, values).items()})
    np.savez(folder / "inputs.npz", **inputs)
    files = [str(folder / name) for name in ("graph.onnx", "inputs.npz", "outputs.npz")]
    command = [sys.executable, "-I", "-c", PLAIN, *files]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "outputs.npz") as found:
        assert set(found.files) == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            if value.dtype == np.float32:
                np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
            elif not name.endswith("candidate_ids"):
                np.testing.assert_array_equal(found[name], value, err_msg=name)


# ---- a checkpoint to a bundle


@pytest.fixture(scope="module")
def bundle(toy_checkpoint, tmp_path_factory) -> Path:
    """The toy, exported here with few candidates and a user's own sentences."""
    folder = tmp_path_factory.mktemp("exported")
    lines = folder / "lines"
    lines.write_text("the cat sees a dog\n\nevery small child follows this old king\nbread\n", encoding="utf-8")
    export(toy_checkpoint, folder / "bundle", candidates=4, sentences=lines)
    assert {path.name for path in folder.iterdir()} == {"bundle", "lines"}
    return folder / "bundle"


def graph_files(bundle: Path) -> dict[str, onnx.ModelProto]:
    opened = Bundle.open(bundle)
    return {name: onnx.load_model_from_string(opened.read(spec.file)) for name, spec in opened.manifest.graphs.items()}


def test_the_bundle_says_what_it_is(bundle, toy_checkpoint):
    manifest = Bundle.open(bundle).manifest
    assert (manifest.format, manifest.family, manifest.task, manifest.precision) == (
        FORMAT,
        "seq2seq",
        "seq2seq",
        "fp32",
    )
    assert manifest.max_source == 20
    assert manifest.verification["levels"] == dict.fromkeys(("L1", "L2", "L3", "L5"), "holds")
    assert manifest.verification["sentences"] >= 64
    made = manifest.provenance
    assert made["edge_attn"] == edge_attn.__version__
    assert made["parameters"] == sum(p.numel() for p in checkpoint.load(toy_checkpoint)[0].parameters())
    assert 0 < made["graphs"]["step"]["max_abs_from_torch"] < 1e-5
    assert made["graphs"]["step"]["ops"]["edge_attn::AdditiveAttention"] == 1
    assert made["graphs"]["encoder"]["ops"]["edge_attn::Gru"] == 1
    assert [tensor.shape for tensor in manifest.graphs["step"].outputs if tensor.name == "candidates"] == [
        ("batch", "beam", 4)
    ]


def test_the_golden_sentences_are_the_users(bundle):
    sentences = json.loads(Bundle.open(bundle).read("golden/golden.json"))["sentences"]
    assert {"the cat sees a dog", "every small child follows this old king", "bread"} <= set(sentences)


def test_it_holds_against_its_checkpoint_with_as_few_candidates(bundle, toy_checkpoint):
    report = verify(bundle, reference=toy_checkpoint, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds"


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_the_graphs_are_portable(bundle, name):
    model = graph_files(bundle)[name]
    assert model.ir_version <= 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, DOMAIN: 1}
    assert not model.graph.value_info
    called = {node.op_type for node in lower.nodes(model.graph) if node.domain == DOMAIN}
    assert (
        called
        == {function.name for function in model.functions}
        == {{"encoder": "Gru", "step": "AdditiveAttention"}[name]}
    )
    for node in model.graph.node:
        if node.domain == DOMAIN:
            assert {"plugin_namespace", "plugin_version"} <= {attribute.name for attribute in node.attribute}
            assert all([*node.input, *node.output])
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_weights_stay_as_small_as_the_checkpoint_stores_them(bundle, toy_checkpoint, name):
    """The toy is stored as fp16: so are its large initializers, and the Cast widens them to the very same numbers."""
    graph = graph_files(bundle)[name].graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    halves = {tensor for tensor, values in tensors.items() if values.dtype == np.float16}
    casts = {node.input[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0] in tensors}
    assert halves == casts.keys()
    assert {onnx.helper.get_node_attr_value(node, "to") for node in casts.values()} == {onnx.TensorProto.FLOAT}
    assert not [n for n, values in tensors.items() if values.dtype == np.float32 and values.nbytes >= 1024]
    stored = [value.numpy() for value in load_file(toy_checkpoint / "model.safetensors").values()]
    assert {value.dtype for value in stored} == {np.dtype(np.float16)}
    everything = np.concatenate([value.ravel() for value in stored])
    for half in halves:  # whole, or the part of one that hears the context or the embedding
        assert np.isin(tensors[half], everything).all(), half


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_the_graphs_run_in_plain_onnxruntime(bundle, toy_checkpoint, tmp_path, name):
    model, _, _ = checkpoint.load(toy_checkpoint)
    module = graphs(model, 4)[name]
    graph = Bundle.open(bundle).read(f"graphs/{name}.onnx")
    holds_in_plain_onnxruntime(graph, module, module.spec, tmp_path)


# ---- the rows of the tables


ROWS = [
    Seq2SeqConfig(
        attention=attention,
        cell=("gru", "lstm")[i % 2],
        attend=("before", "after")[i // 2 % 2],
        input_feeding=i % 3 == 0,
        bridge=("linear", "none")[i % 4 == 1],
        tied_output=i == 1,
        encoder_layers=1 + (i == 3),
        decoder_layers=1 + (i in (2, 5)),
        embedding=16,
        encoder_hidden=8,
        decoder_hidden=16,
        attention_size=8,
    )
    for i, attention in enumerate(ATTENTIONS)
]


def row_name(config: Seq2SeqConfig) -> str:
    parts = [
        config.attention,
        config.cell,
        config.attend,
        config.bridge,
        f"{config.encoder_layers}+{config.decoder_layers}",
    ]
    return "-".join([*parts, *["feed"] * config.input_feeding, *["tied"] * config.tied_output])


@pytest.mark.slow
@pytest.mark.parametrize("config", ROWS, ids=row_name)
def test_every_row_exports_and_agrees(config, tmp_path):
    torch.manual_seed(4)
    model = Seq2Seq(config, 31, 40)
    for name, graph in graphs(model, 6).items():
        proto, worst = graph_model(name, graph, graph.spec)
        assert worst < 1e-5
        holds_in_plain_onnxruntime(proto.SerializeToString(), graph, graph.spec, tmp_path)


def test_the_rows_cover_the_tables():
    assert {config.attention for config in ROWS} == ATTENTIONS.keys()
    for field, values in {
        "cell": {"gru", "lstm"},
        "attend": {"before", "after"},
        "input_feeding": {True, False},
        "bridge": {"none", "linear"},
        "tied_output": {True, False},
        "encoder_layers": {1, 2},
        "decoder_layers": {1, 2},
    }.items():
        assert {getattr(config, field) for config in ROWS} == values


# ---- what fails leaves nothing


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint that is quick to export."""
    folder = tmp_path_factory.mktemp("tiny")
    words = "the a cat dog sees likes small red and"
    text = Text.train("words", [(words, words)], 50, 50)
    sizes = {"embedding": 8, "encoder_hidden": 4, "decoder_hidden": 8, "attention_size": 4}
    data = DataConfig("train.tsv", "valid.tsv", max_tokens=9)
    config = Config(data, TextConfig("words"), Seq2SeqConfig(attention="none", **sizes), TrainingConfig())
    torch.manual_seed(1)
    checkpoint.save_config(folder, config, text)
    checkpoint.save_model(folder, checkpoint.make_model(config, text), "fp32")
    checkpoint.save_samples(folder, ["the cat sees a dog and likes the red cat", "a small cat"])
    return folder


@pytest.fixture(scope="module")
def traced(tiny) -> dict[str, tuple[onnx.ModelProto, float]]:
    model, _, _ = checkpoint.load(tiny)
    return {name: graph_model(name, graph, graph.spec) for name, graph in graphs(model, 16).items()}


@pytest.fixture
def quick(monkeypatch, traced) -> None:
    """Exports of `tiny` trace nothing: what fails comes after that."""
    monkeypatch.setattr(pipeline, "graph_model", lambda name, *_, **__: traced[name])


def test_what_exists_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load", None)  # refused before any work is done
    (tmp_path / "bundle.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"bundle.zip exists; .* --force"):
        export(tiny, tmp_path / "bundle.zip")
    with pytest.raises(InputError, match="is not a bundle, so --force does not replace it"):
        export(tiny, tmp_path / "bundle.zip", force=True)
    assert (tmp_path / "bundle.zip").read_bytes() == b"mine"


def test_force_replaces_a_bundle(tiny, bundle, tmp_path, quick):
    shutil.copytree(bundle, tmp_path / "bundle")
    export(tiny, tmp_path / "bundle", force=True)
    assert Bundle.open(tmp_path / "bundle").manifest.provenance["parameters"] < 3000
    assert left(tmp_path) == ["bundle"]


@pytest.mark.parametrize("candidates", [1, 0, -3])
def test_too_few_candidates(tiny, tmp_path, candidates):
    with pytest.raises(InputError, match="candidates must be at least 2"):
        export(tiny, tmp_path / "bundle", candidates=candidates)


def test_a_weight_that_is_no_number(toy_checkpoint, tmp_path):
    shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    weights = load_file(path)
    weights["combine.weight"][0, 0] = float("nan")
    path.unlink()
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"combine.weight is not .* NaN or infinity"):
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert left(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("what", ["structure", "agreement"])
def test_a_check_that_fails_fails_the_export(tiny, tmp_path, monkeypatch, what):
    def fail(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(checks, what, fail)
    with pytest.raises(ExportError) as failed:
        export(tiny, tmp_path / "bundle")
    assert failed.value.exit_code == 4
    assert not left(tmp_path)


def test_a_bundle_that_does_not_hold_is_not_written(tiny, tmp_path, monkeypatch, quick):
    recorded = pipeline.record_model

    def another(model, *rest):
        said = recorded(model, *rest)
        arrays = {**said.arrays, "steps.projections": said.arrays["steps.projections"] + 0.01}
        return dataclasses.replace(said, arrays=arrays)

    monkeypatch.setattr(pipeline, "record_model", another)
    with pytest.raises(edge_attn.errors.ParityError, match=r"FAIL L2 projection") as failed:
        export(tiny, tmp_path / "bundle")
    assert failed.value.exit_code == 1
    assert not left(tmp_path)


def test_sentences_that_cannot_be_read(tiny, tmp_path, quick):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        export(tiny, tmp_path / "bundle", sentences=tmp_path / "nowhere")
    assert not left(tmp_path)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_full_disk(tiny, tmp_path, monkeypatch, quick, name):
    opened = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **options: object):
        if "w" in mode and tmp_path in self.parents and "text" not in self.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=f"{name} cannot be written: No space left on device"):
        export(tiny, tmp_path / name)
    assert not left(tmp_path)


@pytest.mark.slow
def test_killed_in_the_middle_there_is_no_bundle_and_the_next_export_succeeds(tiny, tmp_path, quick):
    """Killed as it is about to put the whole bundle in its place: what is left is not at --out, and harms nobody."""
    code = (
        "import pathlib, sys, time\n"
        "def stop(self, other):\n    print('now', flush=True); time.sleep(60)\n"
        "pathlib.Path.rename = stop\n"
        "from export.pipeline import export\n"
        "export(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    out = tmp_path / "bundle"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code, tiny, out], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert not out.exists()
    assert left(tmp_path) == [".bundle.partial"]
    export(tiny, out)
    assert left(tmp_path) == ["bundle"]
    assert Bundle.open(out).manifest.verification


@pytest.mark.slow
def test_the_command_says_one_line_and_nothing_else(tiny, tmp_path, run_edge_attn):
    done = run_edge_attn("export", tiny, "--out", tmp_path / "bundle.zip")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1
    assert b"2 graphs, L1 holds, L2 holds, L3 holds, L5 holds on CPUExecutionProvider" in done.stdout


# ---- a user's own module


class Reader(nn.Module):
    """An embedding, two bidirectional layers, attention of one query over them."""

    def __init__(self, cell: str, attention: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.layers = nn.ModuleList([RecurrentLayer(cell, 6, 4), RecurrentLayer(cell, 8, 4)])
        self.attention = attention(8, 8, 5)

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        values = self.embedding(tokens)
        for layer in self.layers:
            values, (last, *_) = layer(values, length)
        mask = torch.arange(tokens.shape[1])[None, :] < length[:, None]
        context, weights = self.attention(last[:, None], self.attention.prepare(values, mask, last))
        return context[:, 0], weights[:, 0]


class Alone(nn.Module):
    """Additive attention by itself, with what it takes as tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Additive(6, 8, 5)

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(query, self.attention.prepare(values, mask, values[:, 0]))


TOKENS = {"tokens": ("int64", ["batch", "src"], [0, 49]), "length": ("int64", ["batch"], [0, "src"])}
READ = {"context": ("float32", ["batch", 8]), "weights": ("float32", ["batch", "src"])}
X = {"x": ("float32", ["batch", "src", 6]), "length": ("int64", ["batch"], [0, "src"])}
OWN = {
    "additive attention": (
        Alone,
        {
            "query": ("float32", ["batch", "tgt", 6]),
            "values": ("float32", ["batch", "src", 8]),
            "mask": ("bool", ["batch", "src"]),
        },
        {"context": ("float32", ["batch", "tgt", 8]), "weights": ("float32", ["batch", "tgt", "src"])},
        ["AdditiveAttention"],
    ),
    "a bidirectional LSTM": (
        lambda: RecurrentLayer("lstm", 6, 4),
        X,
        {
            "output": ("float32", ["batch", "src", 8]),
            "last": ("float32", ["batch", 8]),
            "last_cell": ("float32", ["batch", 8]),
        },
        ["Lstm"],
    ),
    "a stacked reader": (lambda: Reader("gru", Additive), TOKENS, READ, ["AdditiveAttention", "Gru"]),
    "another stacked reader": (lambda: Reader("lstm", General), TOKENS, READ, ["DotAttention", "Lstm"]),
    "nothing of ours": (lambda: nn.Linear(6, 2), {"x": X["x"]}, {"y": ("float32", ["batch", "src", 2])}, []),
}


@pytest.mark.parametrize("own", OWN)
def test_a_users_own_module(tmp_path, own):
    make, inputs, outputs, functions = OWN[own]
    torch.manual_seed(6)
    module = make()
    path = tmp_path / "own.onnx"
    spec = edge_attn.export_module(module, str(path), inputs, outputs)
    assert left(tmp_path) == ["own.onnx"]
    assert [tensor.name for tensor in spec.outputs] == list(outputs)
    model = onnx.load_model(path)
    assert (model.ir_version, len(model.graph.value_info)) == (10, 0)
    assert [function.name for function in model.functions] == functions
    flat = module
    if isinstance(module, RecurrentLayer):

        class Flat(nn.Module):
            def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                output, last = module(*inputs)
                return (output, *last)

        flat = Flat()
    holds_in_plain_onnxruntime(path.read_bytes(), flat, spec, tmp_path)


class Unused(nn.Module):
    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        return 2 * x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Foreign(nn.Module):
    """Calls an op of our domain that this version does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.edge_attn_tests.strange(x)


class FailsAtOne(nn.Module):
    """Divides by zero where there is one position only."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.shape[1] - 1)


Y = {"y": ("float32", ["batch", "src", 6])}
ONE = {"x": X["x"]}


def broken(value: float) -> nn.Module:
    module = nn.Linear(6, 6)
    with torch.no_grad():
        module.bias[2] = value
    return module


WRONG = {
    "an unused input": (Unused, X, Y, "does not use its input length"),
    "a NaN": (lambda: broken(float("nan")), ONE, Y, "bias holds 1 weights that are NaN or infinite"),
    "an infinity": (lambda: broken(float("inf")), ONE, Y, "bias holds 1 weights that are NaN or infinite"),
    "a branch on data": (
        lambda: nn.Sequential(nn.Tanh(), nn.Sequential(Branching())),
        ONE,
        Y,
        r"torch cannot export Sequential, in 1\.0 \(Branching\): ",
    ),
    "NaN at length one": (FailsAtOne, ONE, Y, r"at batch 1, src 1: y holds NaN or infinity"),
    "another size": (nn.Tanh, ONE, {"y": ("float32", ["batch", "src", 7])}, "an axis has size 6"),
    "another axis": (nn.Tanh, ONE, {"y": ("float32", ["src", "batch", 6])}, "described was y float32"),
    "an unknown dtype": (nn.Tanh, {"x": ("float31", ["batch", 6])}, Y, "x: expected a dtype, a shape"),
    "no shape": (nn.Tanh, {"x": ("float32",)}, Y, "x: expected a dtype, a shape"),
    "too much": (nn.Tanh, {"x": ("int64", ["batch"], [0, 1], 3)}, Y, "x: expected a dtype, a shape"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_module_that_does_not_export_leaves_nothing(tmp_path, wrong):
    make, inputs, outputs, sentence = WRONG[wrong]
    with pytest.raises(ExportError, match=sentence) as failed:
        edge_attn.export_module(make(), tmp_path / "own.onnx", inputs, outputs)
    assert failed.value.exit_code == 4
    assert not left(tmp_path)


def test_an_op_that_is_neither_onnx_nor_ours(tmp_path, monkeypatch):
    """A library's own op, translated to a node of its own domain, as torch.onnx's table allows."""
    import onnxscript

    library = torch.library.Library("edge_attn_tests", "DEF")
    library.define("strange(Tensor x) -> Tensor")
    library.impl("strange", lambda x: x + 1, "CompositeExplicitAutograd")
    torch.library.register_fake("edge_attn_tests::strange", torch.empty_like, lib=library)
    for domain in ("com.strangers", DOMAIN):
        theirs = onnxscript.values.Opset(domain, 1)
        table = {torch.ops.edge_attn_tests.strange.default: lambda x, theirs=theirs: theirs.Strange(x)}
        monkeypatch.setattr(lower, "translations", lambda table=table: table)
        with pytest.raises(ExportError, match="Strange"):
            edge_attn.export_module(Foreign(), tmp_path / "own.onnx", ONE, Y)
        assert not left(tmp_path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"own.onnx cannot be written: No space left on device"):
        edge_attn.export_module(nn.Tanh(), tmp_path / "own.onnx", ONE, Y)
    assert not left(tmp_path)


def test_our_ops_are_differentiable_where_they_are_exported():
    """The same module trains: nothing about it was frozen by the export."""
    module = Alone()
    context, _ = module(torch.ones(1, 2, 6), torch.rand(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    context.sum().backward()
    assert module.attention.v.grad is not None
