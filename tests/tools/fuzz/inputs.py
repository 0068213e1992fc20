"""Valid files that the campaigns change: bundles, a checkpoint, a training configuration, a Keras file."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from paths import DATA, KINDS_FOLDER

BUNDLES = (KINDS_FOLDER / "dot-gru.zip", KINDS_FOLDER / "location-gru.zip", KINDS_FOLDER / "none-gru.zip")
CHECKPOINT = DATA / "toy-checkpoint"
PAIRS = DATA / "toy.tsv"
TOML = """[data]
train = "train.tsv"
holdout = 5
max_tokens = 20
[text]
kind = "words"
source_size = 100
target_size = 100
[model]
embedding = 4
encoder_hidden = 4
decoder_hidden = 8
attention = "additive"
attention_size = 4
[training]
seed = 1
updates = 2
warmup = 1
batch_tokens = 512
learning_rate = 1e-2
validate_every = 1
checkpoint_every = 1
"""


@functools.cache
def bundle_files(path: Path) -> dict[str, bytes]:
    """Return the content of the files of a zip by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def folder_files(path: Path) -> dict[str, bytes]:
    """Return the content of the files in a folder by name."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def write_bundle(path: Path, files: dict[str, bytes]) -> None:
    """Write a bundle as a zip, with the hashes and sizes of its files put right where its manifest lists them."""
    files = dict(files)
    try:
        manifest = json.loads(files["bundle.json"])
        for name, entry in manifest["files"].items():
            if name in files and {"sha256", "size"} <= entry.keys() and len(entry["sha256"]) == 64:
                entry.update(sha256=hashlib.sha256(files[name]).hexdigest(), size=len(files[name]))
        files["bundle.json"] = json.dumps(manifest).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # a manifest without such a list
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


@functools.cache
def sentencepiece_model() -> bytes:
    """Train a SentencePiece model with as many entries as the vocabularies of BUNDLES have."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.split("\t")[0] for line in PAIRS.read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        vocab_size=len(json.loads(bundle_files(BUNDLES[0])["text/source.json"])),
        character_coverage=0.98,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
    )
    return model.getvalue()


@functools.cache
def keras_parts() -> tuple[dict[str, object], bytes]:
    """Return the configuration and the weights of a Keras model with an attention layer, written without Keras."""
    import h5py

    layers = [
        {
            "class_name": kind,
            "module": "keras.layers",
            "config": {"name": name, "use_scale": True, "score_mode": "concat"},
        }
        for kind, name in (("Attention", "attention"), ("AdditiveAttention", "additive_attention"))
    ]
    config = {"class_name": "Functional", "config": {"name": "model", "layers": layers}}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for name, shapes in (("attention", [(), ()]), ("additive_attention", [(6,)])):
            group = file.create_group(f"layers/{name}/vars")
            for i, shape in enumerate(shapes):
                group.create_dataset(str(i), data=np.full(shape, 0.5, np.float32))
    return config, weights.getvalue()
