"""The table of campaigns: each makes the files of a case from a seed, and the command line that reads them."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz import inputs, mutations
from fuzz.inputs import BUNDLES, CHECKPOINT, PAIRS, TOML

Arguments = list[str]
SENTENCE = "the old cat sees a bird"


@dataclass(frozen=True)
class Campaign:
    """One kind of input."""

    make: Callable[[Random, Path], Arguments]
    """Write the files of a case into a folder, and return the command line without `edge-attn`."""
    weight: int = 1
    """Number of cases in each round."""


def _verb(random: Random, bundle: Path, verbs: tuple[str, ...]) -> Arguments:
    """Return the command line of one of `verbs` on a bundle or a checkpoint."""
    return {
        "inspect": ["inspect", str(bundle), *random.choice(([], ["--json"]))],
        "verify": ["verify", str(bundle), "--threads", "1"],
        "translate": ["translate", str(bundle), SENTENCE, "", "x" * 300, "--threads", "1"],
        "sample": ["translate", str(bundle), SENTENCE, "--sample", "--format", "jsonl", "--threads", "1"],
        "score": ["score", str(bundle), str(_pairs(bundle)), "--threads", "1", "--format", "jsonl"],
        "align": ["align", str(bundle), str(_pairs(bundle)), "--threads", "1"],
        "evaluate": ["evaluate", str(bundle), str(_pairs(bundle)), "--threads", "1"],
        "export": ["export", str(bundle), "--out", str(bundle.parent / "out.zip")],
        "optimize": ["optimize", str(bundle), "--target", "trt", "--precision", "fp16", "--threads", "1"],
    }[random.choice(verbs)]


def _pairs(bundle: Path) -> Path:
    path = bundle.parent / "pairs.tsv"
    if not path.exists():
        path.write_bytes(b"\n".join(PAIRS.read_bytes().split(b"\n")[:6]) + b"\n")
    return path


def _changed_bundle(
    random: Random, folder: Path, change: Callable[[dict[str, bytes]], None], verbs: tuple[str, ...]
) -> Arguments:
    files = dict(inputs.bundle_files(random.choice(BUNDLES)))
    change(files)
    inputs.write_bundle(folder / "bundle.zip", files)
    return _verb(random, folder / "bundle.zip", verbs)


def manifest(random: Random, folder: Path) -> Arguments:
    def change(files: dict[str, bytes]) -> None:
        files["bundle.json"] = mutations.json_text(random, json.loads(files["bundle.json"]))

    return _changed_bundle(random, folder, change, ("inspect", "inspect", "verify", "translate", "score", "optimize"))


def archive(random: Random, folder: Path) -> Arguments:
    files = dict(inputs.bundle_files(random.choice(BUNDLES)))
    path = folder / "bundle.zip"
    inputs.write_bundle(path, files)
    action = random.randrange(3)
    if action == 0:
        path.write_bytes(mutations.change_bytes(random, path.read_bytes()))
    elif action == 1:
        with zipfile.ZipFile(path, "a") as zipped:
            for name in random.sample(("../outside/new", "/outside", "a\\b", "golden", "graphs/", "é", "CON"), 2):
                data = b"x" * random.choice((0, 10, 1 << 22))
                zipped.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    else:
        name = random.choice(sorted(files))
        files[name] = mutations.change_bytes(random, files[name])  # with its hash put right
        inputs.write_bundle(path, files)
    return _verb(random, path, ("inspect", "translate", "verify"))


def graphs(random: Random, folder: Path) -> Arguments:
    def change(files: dict[str, bytes]) -> None:
        name = random.choice(("encoder", "step"))
        file = f"graphs/{name}.onnx"
        files[file] = mutations.change_graph(random, files[file])
        if random.random() < 0.5:
            files["bundle.json"] = _described(files["bundle.json"], name, files[file])

    return _changed_bundle(random, folder, change, ("verify", "verify", "translate", "sample", "score", "optimize"))


def _described(content: bytes, name: str, graph: bytes) -> bytes:
    """Return a manifest whose description of a graph is that of the graph itself, so that the two fit each other."""
    import onnx
    from onnx import helper

    model, manifest_ = onnx.load_from_string(graph), json.loads(content)
    for kind in ("input", "output"):
        tensors = []
        for tensor in getattr(model.graph, kind):
            described = tensor.type.tensor_type
            shape = [dim.dim_param or dim.dim_value for dim in described.shape.dim]
            try:
                dtype = helper.tensor_dtype_to_np_dtype(described.elem_type).name
            except (KeyError, TypeError):
                dtype = "float32"
            tensors.append({"name": tensor.name, "dtype": dtype, "shape": shape})
        manifest_["graphs"][name][f"{kind}s"] = tensors
    return json.dumps(manifest_).encode()


def golden_json(random: Random, folder: Path) -> Arguments:
    def change(files: dict[str, bytes]) -> None:
        files["golden/golden.json"] = mutations.json_text(random, json.loads(files["golden/golden.json"]))

    return _changed_bundle(random, folder, change, ("verify",))


def golden_arrays(random: Random, folder: Path) -> Arguments:
    def change(files: dict[str, bytes]) -> None:
        files["golden/golden.npz"] = mutations.change_arrays(random, files["golden/golden.npz"])

    return _changed_bundle(random, folder, change, ("verify",))


def text(random: Random, folder: Path) -> Arguments:
    def change(files: dict[str, bytes]) -> None:
        side = random.choice(("source", "target"))
        action = random.randrange(3)
        if action == 0:
            files["text/text.json"] = mutations.json_text(random, json.loads(files["text/text.json"]))
        elif action == 1:
            files[f"text/{side}.json"] = mutations.json_text(random, json.loads(files[f"text/{side}.json"]))
        else:
            _use_sentencepiece(random, files, side)

    return _changed_bundle(random, folder, change, ("verify", "translate", "translate", "score", "inspect"))


def _use_sentencepiece(random: Random, files: dict[str, bytes], side: str) -> None:
    model = inputs.sentencepiece_model()
    manifest_ = json.loads(files["bundle.json"])
    for name in ("source", "target"):
        files[f"text/{name}.model"] = mutations.change_bytes(random, model) if name == side else model
        del files[f"text/{name}.json"], manifest_["files"][f"text/{name}.json"]
        manifest_["files"][f"text/{name}.model"] = {"sha256": "0" * 64, "size": 0}
    files["text/text.json"] = b'{"kind": "sentencepiece"}'
    files["bundle.json"] = json.dumps(manifest_).encode()


def checkpoint(random: Random, folder: Path) -> Arguments:
    files = inputs.folder_files(CHECKPOINT)
    name = random.choice(("config.json", "config.json", "model.safetensors", "text/source.json", "text/samples.txt"))
    if name == "model.safetensors":
        size = int.from_bytes(files[name][:8], "little")
        header = files[name][8 : 8 + size]
        if random.random() < 0.5:
            header = mutations.json_text(random, json.loads(header))
        weights = files[name][8 + size :]
        if random.random() < 0.5:
            weights = mutations.change_bytes(random, weights)
        length = len(header) if random.random() < 0.9 else random.choice((0, 2**62, len(header) + 1))
        files[name] = length.to_bytes(8, "little") + header + weights
    elif name.endswith(".json"):
        files[name] = mutations.json_text(random, json.loads(files[name]))
    else:
        files[name] = mutations.change_lines(random, files[name])
    inputs.write_folder(folder / "run", files)
    return _verb(random, folder / "run", ("translate", "translate", "score", "sample", "export"))


def toml(random: Random, folder: Path) -> Arguments:
    lines = TOML.splitlines()
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines))
        key, separator, _ = lines[at].partition(" = ")
        value = mutations.hostile(random)
        literal = json.dumps(value, allow_nan=True).replace("Infinity", "inf").replace("NaN", "nan")
        lines[at] = f"{key} = {literal}" if separator else random.choice((lines[at] * 2, "[", f"[{literal}]"))
    if random.random() < 0.5:
        key = random.choice(("tape", "heads", "positions", "window", "encoder_layers", "decoder_layers", "dropout"))
        kind = random.choice(
            ("cell = 'lstmn'", "attention = 'location'", "attention = 'multi-head'", "focus = 'local-p'")
        )
        at = lines.index("[model]") + 1 if "[model]" in lines else 0
        lines[at:at] = [f"{key} = {json.dumps(random.choice(mutations.NUMBERS))}", kind]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if random.random() < 0.1:
        content = mutations.change_bytes(random, content)
    (folder / "run.toml").write_bytes(content)
    (folder / "train.tsv").write_bytes(PAIRS.read_bytes())
    return ["train", str(folder / "run.toml"), "--out", str(folder / "run"), "--threads", "1"]


def keras(random: Random, folder: Path) -> Arguments:
    config, weights = inputs.keras_parts()
    action = random.randrange(3)
    content = json.dumps(config).encode()
    if action == 0:
        content = mutations.json_text(random, config)
    elif action == 1:
        weights = mutations.change_bytes(random, weights)
    buffer = io.BytesIO()
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("config.json"), content, compression)
        zipped.writestr(zipfile.ZipInfo("model.weights.h5"), weights, compression)
    data = buffer.getvalue()
    (folder / "model.keras").write_bytes(mutations.change_bytes(random, data) if action == 2 else data)
    return ["load_keras", str(folder / "model.keras"), random.choice(("attention", "additive_attention", ""))]


def corpus(random: Random, folder: Path) -> Arguments:
    path = folder / random.choice(("pairs.tsv", "pairs.tsv.gz"))
    data = mutations.change_lines(random, b"\n".join(PAIRS.read_bytes().split(b"\n")[:12]))
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
        data = mutations.change_bytes(random, data) if random.random() < 0.3 else data
    path.write_bytes(data)
    if random.random() < 0.3:
        (folder / "run.toml").write_text(TOML.replace("train.tsv", path.name).replace("holdout = 5", "holdout = 2"))
        return ["train", str(folder / "run.toml"), "--out", str(folder / "run"), "--threads", "1"]
    verb = random.choice(("score", "align", "evaluate"))
    return [verb, str(random.choice(BUNDLES)), str(path), "--threads", "1"]


def lines(random: Random, folder: Path) -> Arguments:
    source = b"\n".join(line.split(b"\t")[0] for line in PAIRS.read_bytes().split(b"\n")[:12])
    path = folder / random.choice(("lines.txt", "lines.txt.gz"))
    data = mutations.change_lines(random, source)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" and random.random() < 0.8 else data)
    options: Arguments = random.choice(
        ([], ["--format", "jsonl"], ["-n", "2"], ["--prefix", str(path)], ["--replace-unknown"], ["--sample"])
    )
    return ["translate", str(random.choice(BUNDLES[:2])), "--input", str(path), *options, "--threads", "1"]


CAMPAIGNS: dict[str, Campaign] = {
    "manifest": Campaign(manifest, 2),
    "archive": Campaign(archive),
    "graphs": Campaign(graphs, 3),
    "golden-json": Campaign(golden_json),
    "golden-arrays": Campaign(golden_arrays),
    "text": Campaign(text),
    "checkpoint": Campaign(checkpoint),
    "toml": Campaign(toml),
    "keras": Campaign(keras),
    "corpus": Campaign(corpus),
    "lines": Campaign(lines),
}
"""A row is one kind of input."""
