"""The public names of the package are exactly `__all__`, typed and documented; functions take paths as text."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import edge_attn
from edge_attn import errors
from edge_attn.decoding.options import SearchConfig

FUNCTIONS = ("evaluate", "export", "export_module", "load", "train", "verify")


def test_all_has_every_public_name():
    own = [name for name, value in vars(edge_attn).items() if getattr(value, "__module__", "") == "edge_attn"]
    own = [name for name in own if not name.startswith("_") and inspect.isfunction(getattr(edge_attn, name))]
    error_names = [name for name, kind in vars(errors).items() if getattr(kind, "exit_code", None)]
    assert sorted({*edge_attn.__all__}) == edge_attn.__all__
    assert {*edge_attn.__all__} >= {"__version__", "SearchConfig", *own, *error_names, *FUNCTIONS}
    assert all(hasattr(edge_attn, name) for name in edge_attn.__all__)


def test_errors_and_options_are_those_of_their_modules():
    assert edge_attn.EdgeAttnError is errors.EdgeAttnError
    assert edge_attn.SearchConfig is SearchConfig


@pytest.mark.parametrize("name", [name for name in edge_attn.__all__ if name in FUNCTIONS])
def test_function_is_typed_and_documented(name):
    function = inspect.unwrap(getattr(edge_attn, name))
    signature = inspect.signature(function)
    documented = inspect.getdoc(function)
    for parameter in signature.parameters.values():
        assert parameter.annotation not in (inspect.Parameter.empty, "Any"), parameter
        assert f"    {parameter.name}: " in documented, parameter
    assert signature.return_annotation not in (inspect.Signature.empty, "Any")
    assert "Raises:" in documented


@pytest.mark.parametrize("path", [None, 3, b"bundle"])
def test_value_that_is_no_path_is_bad_input(path):
    for call in (
        lambda: edge_attn.load(path),
        lambda: edge_attn.verify(path),
        lambda: edge_attn.evaluate(path, "pairs.tsv"),
        lambda: edge_attn.export(path, "out"),
        lambda: edge_attn.train(path, "out"),
    ):
        with pytest.raises(edge_attn.InputError, match="expected the path of a file or folder, got"):
            call()


def test_wrong_path_is_refused_before_torch_is_imported(tmp_path):
    code = """
import sys, edge_attn
for call in (lambda: edge_attn.export("absent", "out"), lambda: edge_attn.train("absent.toml", "out")):
    try:
        call()
    except edge_attn.InputError as error:
        print(error)
print([name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == [
        "absent is not a checkpoint: there is no such file or folder",
        "absent.toml cannot be read: No such file or directory",
        "[]",
    ], run.stderr


def test_verify_and_evaluate_return_reports(toy_bundle, toy_pairs):
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'edge-attn[evaluate]'")
    report = edge_attn.verify(str(toy_bundle), levels=["L2"], threads=1)
    assert (report.verdict, report.exit_code) == ("holds", 0)
    config = edge_attn.SearchConfig(beam=1)
    [evaluation] = edge_attn.evaluate(str(toy_bundle), str(toy_pairs), config, limit=10).evaluations
    assert (evaluation.beam, evaluation.total.sentences) == (1, 10)


@pytest.mark.usefixtures("needs_torch")
def test_package_export_is_the_function_of_its_name(toy_bundle):
    """Python puts a package in the place of the function when one of its modules is imported."""
    import edge_attn.export.pipeline

    with pytest.raises(edge_attn.CheckpointError, match="is not a checkpoint: it is a bundle"):
        edge_attn.export(str(toy_bundle), "out")
    assert list(inspect.signature(edge_attn.export).parameters)[:2] == ["checkpoint", "out"]
