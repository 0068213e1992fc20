"""Recognition of what a path leads to, so that an error can name it and the command that takes it.

Only names and the first bytes of files are read. No pickle is executed. Standard library only.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import InputError

HEAD, PICKLE_HEAD = 1 << 16, 1 << 20
"""Number of bytes that are read of a file, and of a pickle in a zip."""
MANIFEST = "bundle.json"

OWN_MODEL = "edge_attn.export_module exports its modules, see docs/own-model.md"
PICKLE_ADVICE = f"edge-attn reads no pickle, because a pickle can run code; load it in Python, and {OWN_MODEL}"


@dataclass(frozen=True)
class PathKind:
    """Kind of a file or folder."""

    name: str
    """Noun phrase, with its article."""
    advice: str
    """What to do with it; {path} is the path, quoted for a shell."""


BUNDLE = PathKind("a bundle", "translate, score, align, evaluate, verify, inspect and optimize take it")
CHECKPOINT = PathKind("a checkpoint of edge-attn", "run: edge-attn export {path} --out BUNDLE")
UNTRAINED = PathKind("a checkpoint without weights", "train until the first validation: its run has not stored any yet")
CHECKPOINT_WEIGHTS = PathKind("a file of a checkpoint", "give its folder")
CHECKPOINT_ZIP = PathKind("a zip of a checkpoint", "unpack it: a checkpoint is a folder")
SAFETENSORS = PathKind("a file of weights in safetensors", f"a checkpoint is a folder with config.json; {OWN_MODEL}")
CONFIGURATION = PathKind("a TOML file", "edge-attn train takes a configuration of training")
ONNX = PathKind("an ONNX graph", "a bundle comes from: edge-attn export CHECKPOINT --out BUNDLE")
ORT = PathKind("a model in the format ORT", "give the ONNX graph that it was converted from")
ENGINE = PathKind("a TensorRT engine", "build it from a bundle: edge-attn optimize BUNDLE --target trt --build")
KERAS = PathKind("a model of Keras", "edge_attn.importers.keras.load_keras reads its attention layers in Python")
HDF5 = PathKind("an HDF5 file", KERAS.advice)
SAVED_MODEL = PathKind("a SavedModel of TensorFlow", "save it as .keras; " + KERAS.advice)
TORCHSCRIPT = PathKind("a TorchScript module", f"load it with torch.jit.load, and {OWN_MODEL}")
OPENNMT = PathKind("a checkpoint of OpenNMT-py", PICKLE_ADVICE)
JOEYNMT = PathKind("a checkpoint of JoeyNMT", PICKLE_ADVICE)
FAIRSEQ = PathKind("a checkpoint of fairseq", PICKLE_ADVICE)
LIGHTNING = PathKind("a checkpoint of PyTorch Lightning", PICKLE_ADVICE)
TORCH = PathKind("a pickle of PyTorch", PICKLE_ADVICE)
PICKLE = PathKind("a pickle", PICKLE_ADVICE)
HUGGING_FACE = PathKind(
    "a model of Hugging Face", "ct2-transformers-converter of CTranslate2 and optimum-cli convert Transformers"
)
CTRANSLATE2 = PathKind("a model of CTranslate2", "ctranslate2.Translator runs it")
MARIAN = PathKind("a model of Marian", "ct2-marian-converter of CTranslate2 converts Transformers")
NUMPY = PathKind("a NumPy archive", f"a checkpoint is a folder with config.json; {OWN_MODEL}")
SENTENCEPIECE = PathKind("a SentencePiece model", "it belongs into the folder text of a checkpoint")
ZIP = PathKind("a zip", "unpack it")
TAR = PathKind("a tar archive", "unpack it")
GZIP = PathKind("a compressed file", "give its name the suffix .gz, or unpack it")

TOOLKITS: tuple[tuple[PathKind, tuple[bytes, ...]], ...] = (
    (LIGHTNING, (b"pytorch-lightning_version",)),
    (JOEYNMT, (b"model_state", b"best_ckpt")),
    (FAIRSEQ, (b"optimizer_history",)),
    (FAIRSEQ, (b"last_optimizer_state",)),
    (OPENNMT, (b"generator", b"onmt")),
    (OPENNMT, (b"generator", b"opt", b"vocab")),
    (OPENNMT, (b"generator", b"opt", b"fields")),
)
"""Texts that the pickle of each toolkit's checkpoint contains."""
PREFIXES = (
    (HDF5, b"\x89HDF\r\n\x1a\n"),
    (NUMPY, b"\x93NUMPY"),
    (ENGINE, b"ftrt"),
    (GZIP, b"\x1f\x8b"),
)


def check_kind(path: Path, expected: str, accepted: tuple[PathKind, ...], error: type[InputError] = InputError) -> None:
    """Refuse a path of a known kind that is not accepted. Unknown kinds and missing files pass: their reader judges.

    Args:
        path: the file or folder.
        expected: noun phrase of what the caller takes.
        accepted: kinds that the caller takes.
        error: class of the error.

    Raises:
        InputError: it is of another kind. The message names the kind, and the command that takes it.
    """
    kind = recognize(path)
    if kind is not None and kind not in accepted:
        advice = kind.advice.format(path=shlex.quote(str(path)))
        raise error(f"{path} is not {expected}: it is {kind.name}; {advice}")


def recognize(path: Path) -> PathKind | None:
    """Return the kind of a file or folder, or None for text, for anything unknown and for what cannot be read."""
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
    except (OSError, ValueError):  # ValueError for a NUL byte in the path
        return None
    return None


def _folder(path: Path) -> PathKind | None:
    def has(pattern: str) -> bool:
        return next(path.glob(pattern), None) is not None

    if has(MANIFEST):
        return BUNDLE
    keys = _keys(path / "config.json")
    if "format" in keys:
        return CHECKPOINT if has("model.safetensors") else UNTRAINED
    if has("saved_model.pb"):
        return SAVED_MODEL
    if has("model.bin") and (has("*vocabulary.*") or {"add_source_eos", "bos_token"} <= keys):
        return CTRANSLATE2
    if {"model_type", "architectures", "transformers_version"} & keys or has("pytorch_model*.bin"):
        return HUGGING_FACE
    if has("*.ckpt") and (has("config.y*ml") or has("train.log")):
        return JOEYNMT
    if has("*.npz") and has("*.yml"):
        return MARIAN
    inner = next(path.glob(f"[!.]*/{MANIFEST}"), None)  # hidden ones are of a writer, which `Bundle.open` restores
    if inner is not None:
        return PathKind("the folder of a bundle", f"give the bundle itself: {shlex.quote(str(inner.parent))}")
    if has("*.onnx"):
        return PathKind("a folder of ONNX graphs", ONNX.advice)
    return None


def _keys(path: Path) -> set[str]:
    """Return the keys of a JSON object, none if the file is missing or something else."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size < HEAD else {}
    except (OSError, ValueError, RecursionError):
        return set()
    return set(content) if isinstance(content, dict) else set()


def _file(path: Path) -> PathKind | None:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    for kind, prefix in PREFIXES:
        if head.startswith(prefix):
            return KERAS if kind is HDF5 and b"keras_version" in head else kind
    for matches, kind in FORMATS:
        if matches(path, head):
            return kind
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _toolkit(head, PICKLE)
    return None


def _is_safetensors(path: Path, head: bytes) -> bool:
    size = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= size < path.stat().st_size


def _is_onnx(path: Path, head: bytes) -> bool:
    """Return whether a file begins as ONNX's protobuf does: ir_version, then the producer, the graph or the opsets."""
    is_protobuf = head[:1] == b"\x08" and 1 <= int.from_bytes(head[1:2], "little") <= 32
    return path.suffix == ".onnx" or (is_protobuf and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"))


def _is_weights(path: Path, head: bytes) -> bool:
    return _is_safetensors(path, head) and "format" in _keys(path.parent / "config.json")


FORMATS: tuple[tuple[Callable[[Path, bytes], bool], PathKind], ...] = (
    (_is_weights, CHECKPOINT_WEIGHTS),
    (_is_safetensors, SAFETENSORS),
    (_is_onnx, ONNX),
    (lambda path, head: head[4:8] == b"ORTM", ORT),
    (lambda path, head: head[257:262] == b"ustar", TAR),
    (lambda path, head: head[:1] == b"\n" and b"<unk>" in head[:64], SENTENCEPIECE),
    (lambda path, head: path.suffix == ".toml", CONFIGURATION),
    (lambda path, head: path.name == "config.json" and "format" in _keys(path), CHECKPOINT_WEIGHTS),
    (lambda path, head: path.name == MANIFEST, PathKind("the manifest of a bundle", "give its folder")),
)


def _zip(path: Path) -> PathKind | None:
    """Return the kind of a zip; None if it is damaged, which its reader reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.replace("\\", "/") for name in archive.namelist()}
            top = {name.rpartition("/")[2] for name in names if name.count("/") <= 1}
            if MANIFEST in top:
                return BUNDLE
            if {"metadata.json", "config.json"} <= names:
                return KERAS
            pickled = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if pickled is not None:
                if any("/code/" in name for name in names):
                    return TORCHSCRIPT
                with archive.open(pickled) as file:
                    return _toolkit(file.read(PICKLE_HEAD), TORCH)
            if any(name.startswith("special:model.yml") for name in names):
                return MARIAN
            if names and all(name.endswith(".npy") for name in names):
                return NUMPY
            return CHECKPOINT_ZIP if {"config.json", "model.safetensors"} <= top else ZIP
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError, EOFError):
        return None


def _toolkit(pickled: bytes, otherwise: PathKind) -> PathKind:
    """Return the toolkit that wrote a pickle, by texts in it. The pickle is not executed."""
    for kind, texts in TOOLKITS:
        if all(text in pickled for text in texts):
            return kind
    return TORCH if b"torch" in pickled else otherwise
