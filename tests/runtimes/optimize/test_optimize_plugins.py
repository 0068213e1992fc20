"""`edge-attn optimize --plugin`: an offer, beside graphs that call no plugin."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import quietly

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import update_bundle
from edge_attn.errors import InputError, ParityError, UsageError
from edge_attn.ops import DOMAIN
from edge_attn.runtimes.onnx_graph import load, nodes
from edge_attn.runtimes.optimize import build_target as making
from edge_attn.runtimes.optimize import targets as recipes
from edge_attn.runtimes.optimize.optimize import optimize

KINDS = KINDS_FOLDER
OFFER = ("AdditiveAttention",)


def interface(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(value.name, str(value.type)) for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_calls_a_plugin_stands_beside_the_graphs_that_call_none(toy_bundle, tmp_path, precision):
    plain, offered = (Path(shutil.copy(toy_bundle, tmp_path / name)) for name in ("plain.zip", "offered.zip"))
    quietly(plain, "trt", precision)
    quietly(offered, "trt", precision, plugins=OFFER, min_version="10.3")
    name, file = f"trt-{precision}", f"targets/trt-{precision}/step.plugins.onnx"
    before, after = Bundle.open(plain), Bundle.open(offered)
    made = after.manifest.targets[name]
    files = after.files()
    variant = load(files.pop(file), file)
    assert files == before.files()
    settings = dict(made.settings)
    assert settings.pop("plugins") == {"ops": ["AdditiveAttention"], "graphs": {"step": file}}
    modules = dict(settings.pop("modules"))
    [call] = [node for node in variant.graph.node if node.domain == DOMAIN]
    assert modules.pop(file)[call.name] == "model.attention"
    assert {**settings, "modules": modules} == before.manifest.targets[name].settings
    assert settings["min_version"] == "10.3"
    assert made.verification["plugins"]["levels"] == {"L1": "holds", "L2": "holds", "L3": "holds", "L5": "holds"}
    assert made.verification["plugins"]["found"]["L2 top1"] <= 0.01
    [call] = [node for node in nodes(variant.graph) if node.domain == DOMAIN]
    assert call.op_type == "AdditiveAttention"
    assert not variant.functions
    kinds = {output for node in variant.graph.node if node.op_type == "Cast" for output in node.output}
    assert (call.input[1] in kinds) is (precision == "fp16")
    assert interface(variant) == interface(load(after.read(made.graphs["step"].file), "step"))


def test_they_leave_with_the_target_that_they_belong_to(copied, edge_attn_cli):
    quietly(copied, "trt", "fp32", plugins=OFFER)
    said = edge_attn_cli("inspect", copied).stdout
    assert "  plugins: graphs step targets/trt-fp32/step.plugins.onnx, ops AdditiveAttention" in said
    assert "  with plugins: L1 holds, L2 holds, L3 holds, L5 holds (CPUExecutionProvider)" in said
    quietly(copied, "trt", "fp32", force=True)
    bundle = Bundle.open(copied)
    assert {name for name in bundle.files() if name.startswith("targets/")} == {
        "targets/trt-fp32/encoder.onnx",
        "targets/trt-fp32/step.onnx",
    }
    assert "plugins" not in bundle.manifest.targets["trt-fp32"].settings


def test_an_op_that_no_graph_calls(tmp_path, monkeypatch):
    path = Path(shutil.copy(KINDS / "dot-gru.zip", tmp_path))
    before = path.read_bytes()
    monkeypatch.setattr(making, "choose", None)
    with pytest.raises(InputError, match=r"no graph of .* calls AdditiveAttention.* call: DotAttention, Gru$"):
        optimize(path, "trt", plugins=OFFER, say=lambda line: None)
    assert path.read_bytes() == before


def test_a_variant_that_says_something_else_is_never_written(copied, monkeypatch):
    def wrecked(bundle, oldest, plugins):
        made = recipes.inlined(bundle, oldest, plugins)
        if plugins:
            weight = next(tensor for tensor in made["step"].graph.initializer if tensor.name == "model.output.bias")
            weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return made

    monkeypatch.setattr(making, "inlined", wrecked)
    before = copied.read_bytes()
    with pytest.raises(ParityError, match=r"the trt-fp32 graphs that call AdditiveAttention of .* do not say what"):
        optimize(copied, "trt", "fp32", plugins=OFFER, threads=1, say=lambda line: None)
    assert copied.read_bytes() == before


def test_an_older_kind_of_record_is_made_again_by_force(copied):
    """Of before plugins were an offer: a list of their names, and no graph beside the others."""
    quietly(copied, "trt", "fp32")

    def older(bundle: Bundle):
        held = bundle.manifest.targets["trt-fp32"]
        targets = {held.name: dataclasses.replace(held, settings={**held.settings, "plugins": list(OFFER)})}
        return dataclasses.replace(bundle.manifest, targets=targets), bundle.files()

    update_bundle(copied, older)
    with pytest.raises(UsageError, match="made with another --plugin or none"):
        optimize(copied, "trt", plugins=OFFER, build=True, say=lambda line: None)
    quietly(copied, "trt", "fp32", plugins=OFFER, force=True)
    assert Bundle.open(copied).manifest.targets["trt-fp32"].settings["plugins"]["ops"] == list(OFFER)
