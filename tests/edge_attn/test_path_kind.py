"""Each kind of file and folder that users hand to a command is named, and no pickle is executed."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE

from edge_attn import path_kind
from edge_attn.errors import BundleError, InputError
from edge_attn.path_kind import PathKind, check_kind, recognize


class RunsCode:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("raise SystemExit('the pickle was executed')",)


def files(**contents: bytes) -> Callable[[Path], Path]:
    """Write a folder of files; two underscores in a name are a dot."""

    def write(folder: Path) -> Path:
        for name, data in contents.items():
            (folder / name.replace("__", ".")).write_bytes(data)
        return folder

    return write


def archive(*names: str, data: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, data)
    return buffer.getvalue()


def torch_save(content: object) -> bytes:
    """Return a zip as torch.save writes it."""
    return archive("model/data.pkl", data=pickle.dumps([content, RunsCode()], protocol=2))


def one(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


SAFETENSORS = (2).to_bytes(8, "little") + b"{}x"
OPENNMT = {"model": {}, "generator": {}, "vocab": {}, "opt": {"encoder_type": "brnn"}, "optim": {}}
JOEYNMT = {"steps": 1, "best_ckpt_score": 0.5, "best_ckpt_iter": 1, "model_state": {}, "optimizer_state": {}}
CASES: dict[str, tuple[Callable[[Path], Path], PathKind]] = {
    "bundle in a zip": (lambda folder: EMBEDDED_BUNDLE, path_kind.BUNDLE),
    "bundle in a zip with a folder around it": (one("b.zip", archive("en-fr/bundle.json")), path_kind.BUNDLE),
    "bundle": (files(bundle__json=b"{}"), path_kind.BUNDLE),
    "checkpoint": (files(config__json=b'{"format": 2}', model__safetensors=SAFETENSORS), path_kind.CHECKPOINT),
    "checkpoint in training": (files(config__json=b'{"format": 2}'), path_kind.UNTRAINED),
    "checkpoint in a zip": (one("c.zip", archive("c/config.json", "c/model.safetensors")), path_kind.CHECKPOINT_ZIP),
    "weights": (one("model.safetensors", SAFETENSORS), path_kind.SAFETENSORS),
    "configuration": (one("run.toml", b"[data]\n"), path_kind.CONFIGURATION),
    "ONNX": (one("model.onnx", b"\x08\x0a\x12\x07pytorch"), path_kind.ONNX),
    "ONNX without its suffix": (one("model", b"\x08\x08\x12\x07pytorch"), path_kind.ONNX),
    "ORT": (one("model.ort", b"\x1c\x00\x00\x00ORTM"), path_kind.ORT),
    "engine": (one("model.plan", b"ftrt\x00\x00"), path_kind.ENGINE),
    "Keras": (one("m.keras", archive("metadata.json", "config.json", "model.weights.h5")), path_kind.KERAS),
    "Keras in HDF5": (one("m.h5", b"\x89HDF\r\n\x1a\n....keras_version"), path_kind.KERAS),
    "HDF5": (one("m.h5", b"\x89HDF\r\n\x1a\n"), path_kind.HDF5),
    "SavedModel": (files(saved_model__pb=b"x"), path_kind.SAVED_MODEL),
    "TorchScript": (one("m.pt", archive("m/data.pkl", "m/code/__torch__.py")), path_kind.TORCHSCRIPT),
    "OpenNMT-py": (one("m_step_1000.pt", torch_save(OPENNMT)), path_kind.OPENNMT),
    "JoeyNMT": (one("best.ckpt", torch_save(JOEYNMT)), path_kind.JOEYNMT),
    "JoeyNMT's folder": (files(config__yaml=b"name: x", best__ckpt=b"x"), path_kind.JOEYNMT),
    "fairseq": (one("m.pt", torch_save({"args": None, "optimizer_history": []})), path_kind.FAIRSEQ),
    "Lightning": (one("m.ckpt", torch_save({"pytorch-lightning_version": "2.0"})), path_kind.LIGHTNING),
    "torch": (one("m.pt", torch_save({"weight": 1})), path_kind.TORCH),
    "torch before 1.6": (one("m.pt", pickle.dumps(["torch._utils", RunsCode()], protocol=2)), path_kind.TORCH),
    "pickle": (one("m.pkl", pickle.dumps([1, RunsCode()])), path_kind.PICKLE),
    "Hugging Face": (files(config__json=b'{"model_type": "marian", "architectures": []}'), path_kind.HUGGING_FACE),
    "Hugging Face with a pickle": (files(pytorch_model__bin=b"x"), path_kind.HUGGING_FACE),
    "CTranslate2": (files(model__bin=b"x", source_vocabulary__json=b"[]"), path_kind.CTRANSLATE2),
    "Marian": (one("m.npz", archive("encoder_W.npy", "special:model.yml.npy")), path_kind.MARIAN),
    "NumPy": (one("m.npz", npz(weight=np.zeros(2))), path_kind.NUMPY),
    "tar": (one("m.tar", tar()), path_kind.TAR),
    "gzip": (one("pairs.tsv", b"\x1f\x8b\x08"), path_kind.GZIP),
    "zip": (one("m.zip", archive("a.txt")), path_kind.ZIP),
}


@pytest.mark.parametrize(("write", "expected"), CASES.values(), ids=CASES.keys())
def test_kind_is_recognized(tmp_path, write, expected):
    assert recognize(write(tmp_path)) == expected


@pytest.mark.parametrize(
    "write",
    [
        one("pairs.tsv", b"a cat\tun chat\n"),
        one("empty", b""),
        one("cut.zip", archive("bundle.json")[:40]),
        one("short", b"\x80"),
        one("config.json", b"[" * 100_000),
        files(notes__txt=b"x"),
        files(),
        lambda folder: folder / "absent",
        lambda folder: Path("a\0b"),
    ],
)
def test_other_paths_have_no_kind(tmp_path, write):
    assert recognize(write(tmp_path)) is None


def test_folder_around_a_bundle_leads_to_it(tmp_path):
    (tmp_path / "en fr").mkdir()
    (tmp_path / "en fr" / "bundle.json").write_bytes(b"{}")
    with pytest.raises(BundleError) as caught:
        check_kind(tmp_path, "a bundle", (path_kind.BUNDLE,), BundleError)
    assert str(caught.value) == (
        f"{tmp_path} is not a bundle: it is the folder of a bundle; give the bundle itself: '{tmp_path / 'en fr'}'"
    )


def test_error_names_the_kind_and_the_command(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": 2}))
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS)
    with pytest.raises(InputError) as caught:
        check_kind(tmp_path, "a bundle", (path_kind.BUNDLE,))
    assert str(caught.value) == (
        f"{tmp_path} is not a bundle: it is a checkpoint of edge-attn; run: edge-attn export {tmp_path} --out BUNDLE"
    )
    check_kind(tmp_path, "a checkpoint", (path_kind.CHECKPOINT,))


@pytest.mark.parametrize("kind", [kind for _, kind in CASES.values()], ids=lambda kind: kind.name)
def test_kind_is_a_noun_phrase_with_advice(kind):
    assert kind.name.startswith(("a ", "an "))
    assert kind.advice
    assert len(f"{kind.name} {kind.advice}") < 200
