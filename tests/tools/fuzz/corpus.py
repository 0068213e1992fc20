"""Failures that fuzzing has revealed, each by a name: the files of the case, and the right exit code and error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bad_graphs import RUN_ERRORS

from fuzz import inputs
from fuzz.inputs import BUNDLES, CHECKPOINT, PAIRS, TOML

Files = dict[str, bytes]


@dataclass(frozen=True)
class Failure:
    """A case of which a former version crashed, hung or misled."""

    make: Callable[[Path], list[str]]
    """Write the files of the case into a folder, and return the command line without `edge-attn`."""
    error: str
    """Part of the error that is right."""
    code: int = 4
    slow: bool = False
    """True where the command imports torch's exporter."""


def _bundle(change: Callable[[Files], None], *verb: str) -> Callable[[Path], list[str]]:
    """Return a maker of a changed bundle whose hashes are right."""

    def make(folder: Path) -> list[str]:
        files = dict(inputs.bundle_files(BUNDLES[0]))
        change(files)
        path = folder / "bundle.zip"
        inputs.write_bundle(path, files)
        return [verb[0], str(path), *(str(PAIRS) if part == "PAIRS" else part for part in verb[1:])]

    return make


def _json(name: str, change: Callable[[Any], None]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        content = json.loads(files[name])
        change(content)
        files[name] = json.dumps(content).encode()

    return edit


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        with np.load(io.BytesIO(files["golden/golden.npz"])) as archive:
            arrays = {key: archive[key] for key in archive.files}
        arrays[name] = change(arrays[name])
        data = io.BytesIO()
        np.savez(data, **arrays)
        files["golden/golden.npz"] = data.getvalue()

    return edit


def _npy_header(header: bytes) -> Callable[[Files], None]:
    """Return a change that makes the golden data one array with this header."""
    import zipfile

    def edit(files: Files) -> None:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            content = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + b"\0" * 64
            archive.writestr("steps.rest.npy", content)
        files["golden/golden.npz"] = data.getvalue()

    return edit


def _graph(name: str) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        model = onnx.load_from_string(files["graphs/step.onnx"])
        RUN_ERRORS[name][0](model)
        files["graphs/step.onnx"] = model.SerializeToString()

    return edit


def _external_data(files: Files) -> None:
    """Let the first constant of the encoder be read from a file outside of the bundle."""
    model = onnx.load_from_string(files["graphs/encoder.onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../outside/secret.txt"
    files["graphs/encoder.onnx"] = model.SerializeToString()


def _checkpoint(name: str, change: Callable[[Any], None], *verb: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        files = inputs.folder_files(CHECKPOINT)
        _json(name, change)(files)
        inputs.write_folder(folder / "run", files)
        return [
            verb[0],
            str(folder / "run"),
            *verb[1:],
            *(["--out", str(folder / "out")] if verb[0] == "export" else []),
        ]

    return make


def _toml(old: str, new: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        assert old in TOML
        (folder / "run.toml").write_text(TOML.replace(old, new))
        (folder / "train.tsv").write_bytes(PAIRS.read_bytes())
        return ["train", str(folder / "run.toml"), "--out", str(folder / "run")]

    return make


def _set(*path: Any) -> Callable[[Any], None]:
    """Return a change of a JSON value: the last of `path` is the value, the others are its keys."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


STEP_FAULT = "graphs/step.onnx does not run"
LIMIT = ("--max-run-seconds", "0.5", "--threads", "1")
TRANSLATE = ("translate", "a cat")
ENDLESS, TILE, LONG = (_graph(name) for name in ("an endless loop", "a huge tile", "an axis too long"))
HUGE_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
GOLDEN, CONFIG = "golden/golden.json", "config.json"
FAILURES: dict[str, Failure] = {
    "an endless loop in verify": Failure(_bundle(ENDLESS, "verify", *LIMIT), "was stopped after 0.5 seconds"),
    "an endless loop in score": Failure(_bundle(ENDLESS, "score", "PAIRS", *LIMIT), STEP_FAULT),
    "a huge tile in verify": Failure(_bundle(TILE, "verify"), STEP_FAULT),
    "a huge tile in translate": Failure(_bundle(TILE, *TRANSLATE), STEP_FAULT),
    "a wrong shape in translate": Failure(_bundle(LONG, *TRANSLATE), STEP_FAULT),
    "weights in a file outside": Failure(_bundle(_external_data, *TRANSLATE), "encoder.onnx is not a graph that"),
    "a header of 4 TiB": Failure(_bundle(_npy_header(HUGE_HEADER), "verify"), "golden"),
    "a header of brackets": Failure(_bundle(_npy_header(b"(" * 10_001 + b"\n"), "verify"), "golden"),
    "noise that is NaN": Failure(_bundle(_array("steps.noise", lambda a: a * np.nan), "verify"), "steps.noise"),
    "a golden array of texts": Failure(_bundle(_array("steps.rest", lambda a: a.astype("U")), "verify"), "steps.rest"),
    "a golden array of two axes": Failure(_bundle(_array("steps.rest", lambda a: a[:, None]), "verify"), "steps.rest"),
    "a golden token out of range": Failure(
        _bundle(_json(GOLDEN, _set("greedy", 0, "tokens", 0, 10**6)), "verify"), "golden"
    ),
    "a lone surrogate in the manifest": Failure(
        _bundle(_json("bundle.json", _set("\ud800" * 900, "\n")), "inspect"), "bundle.json"
    ),
    "too few target entries": Failure(_bundle(_json("text/target.json", list.pop), "score", "PAIRS"), "target"),
    "an embedding of 10**12": Failure(
        _checkpoint(CONFIG, _set("model", "embedding", 10**12), *TRANSLATE), "at most 1048576"
    ),
    "10**9 layers": Failure(_checkpoint(CONFIG, _set("model", "encoder_layers", 10**9), *TRANSLATE), "at most 64"),
    "sources of 10**9 tokens": Failure(
        _checkpoint(CONFIG, _set("data", "max_tokens", 10**9), "export"), "expected at most 4096", slow=True
    ),
    "a hidden size of 10**9": Failure(_toml("hidden = 8", "hidden = 1000000000"), "must be at most 1048576"),
    "a hidden size of 2**63": Failure(_toml("hidden = 8", "hidden = 9223372036854775808"), "less than 2**63"),
    "more weights than memory": Failure(
        _toml("embedding = 4\nencoder_hidden = 4", "embedding = 1000000\nencoder_hidden = 1000000"), "lower the sizes"
    ),
    "batches of 2 tokens": Failure(_toml("batch_tokens = 512", "batch_tokens = 2"), "is less than one pair"),
}
"""Failures by name. A failure that fuzzing reveals becomes a row here when it is mended."""
