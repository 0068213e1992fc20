"""`edge-attn optimize --plugin`: a variant with the plugin, beside graphs that call none."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import run_optimize

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import update_bundle
from edge_attn.errors import InputError, ParityError, UsageError
from edge_attn.ops import DOMAIN
from edge_attn.runtimes.onnx_graph import load, nodes
from edge_attn.runtimes.optimize import build_target
from edge_attn.runtimes.optimize import targets as recipes
from edge_attn.runtimes.optimize.optimize import optimize

KINDS = KINDS_FOLDER
PLUGINS = ("AdditiveAttention",)


def interface(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(value.name, str(value.type)) for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_variant_with_plugin_is_written_beside_the_graphs(toy_bundle, tmp_path, precision):
    plain, requested = (Path(shutil.copy(toy_bundle, tmp_path / name)) for name in ("plain.zip", "requested.zip"))
    run_optimize(plain, "trt", precision)
    run_optimize(requested, "trt", precision, plugins=PLUGINS, min_version="10.3")
    name, file = f"trt-{precision}", f"targets/trt-{precision}/step.plugins.onnx"
    before, after = Bundle.open(plain), Bundle.open(requested)
    target = after.manifest.targets[name]
    files = after.files()
    variant = load(files.pop(file), file)
    assert files == before.files()
    settings = dict(target.settings)
    assert settings.pop("plugins") == {"ops": ["AdditiveAttention"], "graphs": {"step": file}}
    modules = dict(settings.pop("modules"))
    [call] = [node for node in nodes(variant.graph) if node.domain == DOMAIN]
    assert modules.pop(file)[call.name] == "model.attention"
    assert {**settings, "modules": modules} == before.manifest.targets[name].settings
    assert settings["min_version"] == "10.3"
    assert target.verification["plugins"]["levels"] == {"L1": "holds", "L2": "holds", "L3": "holds", "L5": "holds"}
    assert target.verification["plugins"]["found"]["L2 top1"] <= 0.01  # codespell:ignore found
    assert call.op_type == "AdditiveAttention"
    assert not variant.functions
    kinds = {output for node in variant.graph.node if node.op_type == "Cast" for output in node.output}
    assert (call.input[1] in kinds) is (precision == "fp16")
    assert interface(variant) == interface(load(after.read(target.graphs["step"].file), "step"))


def test_variants_are_removed_with_their_target(copied, edge_attn_cli):
    run_optimize(copied, "trt", "fp32", plugins=PLUGINS)
    text = edge_attn_cli("inspect", copied, "--verbose").stdout
    assert "  plugins: graphs step targets/trt-fp32/step.plugins.onnx, ops AdditiveAttention" in text
    assert "  with plugins: L1 holds, L2 holds, L3 holds, L5 holds (CPUExecutionProvider)" in text
    run_optimize(copied, "trt", "fp32", force=True)
    bundle = Bundle.open(copied)
    assert {name for name in bundle.files() if name.startswith("targets/")} == {
        "targets/trt-fp32/encoder.onnx",
        "targets/trt-fp32/step.onnx",
    }
    assert "plugins" not in bundle.manifest.targets["trt-fp32"].settings


def test_plugin_for_an_op_that_no_graph_calls_is_refused(tmp_path, monkeypatch):
    path = Path(shutil.copy(KINDS / "dot-gru.zip", tmp_path))
    before = path.read_bytes()
    monkeypatch.setattr(build_target, "plan_precision", None)
    with pytest.raises(InputError, match=r"no graph of .* calls AdditiveAttention.* call: DotAttention, Gru$"):
        optimize(path, "trt", plugins=PLUGINS, log=lambda line: None)
    assert path.read_bytes() == before


def test_variant_with_other_results_is_never_written(copied, monkeypatch):
    def wrong(bundle, oldest, plugins):
        models = recipes.inlined(bundle, oldest, plugins)
        if plugins:
            weight = next(tensor for tensor in models["step"].graph.initializer if tensor.name == "model.output.bias")
            weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return models

    monkeypatch.setattr(build_target, "inlined", wrong)
    before = copied.read_bytes()
    with pytest.raises(ParityError, match=r"graphs that call AdditiveAttention of .* differ from the reference"):
        optimize(copied, "trt", "fp32", plugins=PLUGINS, threads=1, log=lambda line: None)
    assert copied.read_bytes() == before


def test_list_of_plugins_of_an_older_version_needs_force(copied):
    """A version before 0.1.0 stored a list of names, and no variant."""
    run_optimize(copied, "trt", "fp32")

    def older(bundle: Bundle):
        stored = bundle.manifest.targets["trt-fp32"]
        targets = {stored.name: dataclasses.replace(stored, settings={**stored.settings, "plugins": list(PLUGINS)})}
        return dataclasses.replace(bundle.manifest, targets=targets), bundle.files()

    update_bundle(copied, older)
    with pytest.raises(UsageError, match="built with another --plugin or none"):
        optimize(copied, "trt", plugins=PLUGINS, build=True, log=lambda line: None)
    run_optimize(copied, "trt", "fp32", plugins=PLUGINS, force=True)
    assert Bundle.open(copied).manifest.targets["trt-fp32"].settings["plugins"]["ops"] == list(PLUGINS)
