"""Keras' attention layers from a `.keras` file, with their weights, without Keras. Nothing in the file is executed.

A `.keras` file (Keras 3, and 2.13 or newer) is a zip. Its config.json lists the layers. Its model.weights.h5 contains
the j-th weight of the i-th layer of a kind at `layers/<kind>_<i>/vars/<j>`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from edge_attn.errors import ConfigError, InputError, MissingExtraError, quoted
from edge_attn.models.layers.keras import KerasAdditiveAttention, KerasAttention, KerasLayer

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
KINDS = ("Attention", "AdditiveAttention")
CONFIG_LIMIT = 64 << 20
WEIGHT_LIMIT = 1 << 20
"""Maximum number of elements of a weight; the largest is a scale with one element for each feature."""
WEIGHT_COUNT = 2
"""Maximum number of weights of a layer."""
UNPACKED_LIMIT = 1 << 30
"""Maximum size of a compressed file of weights in bytes. Keras stores it uncompressed, which has no limit."""
SHOWN_NAMES = 8
"""Maximum number of layers that a message names."""


def load_keras(path: str | os.PathLike[str], layer: str | None = None) -> KerasLayer:
    """Return the attention layer of the model at `path`; `layer` is its name if the model has more than one.

    The result equals Keras' result for queries whose keys are all masked too. Dropout is omitted.

    Raises:
        InputError: the file cannot be read, is damaged or is not a `.keras` file, or has no such layer.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "keras") from error
    try:
        with zipfile.ZipFile(path) as archive:
            group, kind, config = _select(list(_layers(_config(archive))), layer)
            with _weights(archive) as file, h5py.File(file, "r") as weights:
                return _build(kind, config, _variables(weights, group, config["name"]))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:  # the last: an unknown zip flag
        raise InputError(f"{path} is not a .keras file, or is damaged: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(f"{path} has no usable Keras attention layer: {reason}") from error


def _config(archive: zipfile.ZipFile) -> Any:
    with archive.open(CONFIG) as file:
        content = file.read(CONFIG_LIMIT + 1)
    if len(content) > CONFIG_LIMIT:
        raise ValueError(f"its {CONFIG} has more than {CONFIG_LIMIT} bytes")
    model = json.loads(content)
    if not isinstance(model, dict) or not isinstance(model.get("config"), dict):
        raise ValueError(f"its {CONFIG} describes no model")
    return model


@contextlib.contextmanager
def _weights(archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
    """Open the file of weights. A compressed one is unpacked first: a seek in it would start from its beginning."""
    with archive.open(WEIGHTS) as member:
        if archive.getinfo(WEIGHTS).compress_type == zipfile.ZIP_STORED:
            yield member
            return
        with tempfile.TemporaryFile() as file:
            while block := member.read(1 << 20):
                if file.tell() + len(block) > UNPACKED_LIMIT:
                    raise ValueError(f"its compressed {WEIGHTS} has more than {UNPACKED_LIMIT} bytes")
                file.write(block)
            file.seek(0)
            yield file


def _layers(model: Any, parent: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the weight group, kind and configuration of each attention layer, nested models included."""
    counts: Counter[str] = Counter()
    for declared in model["config"].get("layers", []):
        kind = declared["class_name"]
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        group = f"{parent}layers/{name}_{counts[name]}" if counts[name] else f"{parent}layers/{name}"
        counts[name] += 1
        if kind in KINDS and declared["module"] == "keras.layers":
            yield group, kind, declared["config"]
        elif "layers" in declared["config"]:
            yield from _layers(declared, f"{group}/")


def _select(layers: list[tuple[str, str, Any]], layer: str | None) -> tuple[str, str, Any]:
    if not layers:
        raise ValueError("no Functional or Sequential model in it declares one")
    names = [config["name"] for _, _, config in layers]
    matches = [row for row, name in zip(layers, names, strict=True) if layer in (None, name)]
    if len(matches) != 1:
        reason = "choose one with layer=" if layer is None else f"{len(matches)} of them have the name {quoted(layer)}"
        shown = ", ".join(map(quoted, names[:SHOWN_NAMES]))
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise ValueError(f"it has {shown}{more}; {reason}")
    return matches[0]


def _variables(weights: Any, path: str, name: str) -> list[Tensor]:
    """Return the weights of the layer in the order of their creation."""
    import h5py

    group = weights
    for part in f"{path}/vars".split("/"):
        group = _child(group, part, h5py.Group)
        if group is None:  # Keras stores no group for a layer without weights
            return []
    if group.attrs.get("name", name) != name:
        raise ValueError(f"the weights at {path} belong to {group.attrs['name']!r}, not to {name!r}")
    if len(group) > WEIGHT_COUNT:
        raise ValueError(f"{path} has {len(group)} weights, expected at most {WEIGHT_COUNT}")
    tensors = []
    for i in range(len(group)):
        stored = _child(group, str(i), h5py.Dataset)
        if stored is None or stored.external or stored.is_virtual or stored.dtype.kind != "f":
            raise ValueError(f"weight {i} at {path} is not stored as plain numbers")
        if stored.size > WEIGHT_LIMIT:
            raise ValueError(f"weight {i} at {path} has {stored.size} elements, the limit is {WEIGHT_LIMIT}")
        tensors.append(torch.from_numpy(np.array(stored[()], np.float32)))
    return tensors


def _child(group: Any, name: str, kind: type) -> Any:
    """Return the member `name`, or None if there is none. Links are refused, because they can leave the file."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link")
    child = group[name]
    if not isinstance(child, kind):
        raise ValueError(f"{name} is a {type(child).__name__}, expected a {kind.__name__}")
    return child


def _build(kind: str, config: Any, weights: list[Tensor]) -> KerasLayer:
    layer: KerasLayer
    if not isinstance(config["use_scale"], bool):
        raise ValueError(f"use_scale must be true or false, got {config['use_scale']!r}")
    if kind == "Attention":
        layer = KerasAttention(config["use_scale"], config["score_mode"], keras_empty_rows=True)
    else:
        size = weights[0].numel() if weights else 0
        layer = KerasAdditiveAttention(size, config["use_scale"] and size > 0, keras_empty_rows=True)
    parameters = dict(layer.named_parameters())
    shapes = [tuple(parameter.shape) for parameter in parameters.values()]
    actual = [tuple(weight.shape) for weight in weights]
    if shapes != actual or bool(config["use_scale"]) != ("scale" in parameters):
        raise ValueError(f"its weights have the shapes {actual}, which do not fit {kind} with this configuration")
    layer.load_state_dict(dict(zip(parameters, weights, strict=True)))
    return layer
