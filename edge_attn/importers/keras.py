"""Keras' attention layers from a `.keras` file, with their weights. Nothing in the file is executed, nor keras needed.

A `.keras` file (Keras 3, and 2.13 on) is a zip: config.json says the layers, model.weights.h5 holds under
`layers/<kind>_<i>/vars/<j>` the j-th weight of the i-th layer of a kind.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_attn.errors import ConfigError, InputError, MissingExtraError
from edge_attn.models.layers.keras import KerasAdditiveAttention, KerasAttention, KerasLayer

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
KINDS = ("Attention", "AdditiveAttention")
CONFIG_LIMIT = 64 << 20
WEIGHT_LIMIT = 1 << 20
"""Numbers of one weight: the largest is a scale with one for each feature."""


def load_keras(path: str | os.PathLike[str], layer: str | None = None) -> KerasLayer:
    """The attention layer of the model saved at `path`; the one named `layer`, where it has more than one.

    It says what Keras says where all keys are masked, too. Dropout is for training, and is left behind.

    Raises:
        InputError: no `.keras` file, damaged, or without such a layer.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "keras") from error
    try:
        with zipfile.ZipFile(path) as archive:
            place, kind, config = _choose(list(_layers(_config(archive))), layer)
            with archive.open(WEIGHTS) as file, h5py.File(file, "r") as weights:
                return _make(kind, config, _variables(weights, place, config["name"]))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:  # the third: an unknown zip flag
        raise InputError(f"{path} is not a .keras file, or is damaged: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(f"{path} does not give a Keras attention layer: {reason}") from error


def _config(archive: zipfile.ZipFile) -> Any:
    with archive.open(CONFIG) as file:
        content = file.read(CONFIG_LIMIT + 1)
    if len(content) > CONFIG_LIMIT:
        raise ValueError(f"its {CONFIG} has more than {CONFIG_LIMIT} bytes")
    model = json.loads(content)
    if not isinstance(model, dict) or not isinstance(model.get("config"), dict):
        raise ValueError(f"its {CONFIG} describes no model")
    return model


def _layers(model: Any, inside: str = "") -> Iterator[tuple[str, str, Any]]:
    """Place among the weights, kind and configuration of each attention layer, those of models inside this one too."""
    seen: Counter[str] = Counter()
    for declared in model["config"].get("layers", []):
        kind = declared["class_name"]
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        place = f"{inside}layers/{name}_{seen[name]}" if seen[name] else f"{inside}layers/{name}"
        seen[name] += 1
        if kind in KINDS and declared["module"] == "keras.layers":
            yield place, kind, declared["config"]
        elif "layers" in declared["config"]:
            yield from _layers(declared, f"{place}/")


def _choose(found: list[tuple[str, str, Any]], layer: str | None) -> tuple[str, str, Any]:
    if not found:
        raise ValueError("it has none that a Functional or Sequential model declares")
    names = [config["name"] for _, _, config in found]
    chosen = [row for row, name in zip(found, names, strict=True) if layer in (None, name)]
    if len(chosen) != 1:
        wanted = "layer is not given" if layer is None else f"{len(chosen)} of them are named {layer!r}"
        raise ValueError(f"it has {', '.join(map(repr, names))}, and {wanted}")
    return chosen[0]


def _variables(weights: Any, place: str, name: str) -> list[Tensor]:
    """The layer's weights, in the order in which it made them."""
    import h5py

    group = weights
    for part in f"{place}/vars".split("/"):
        group = _child(group, part, h5py.Group)
        if group is None:  # Keras stores nothing of a layer without weights
            return []
    if group.attrs.get("name", name) != name:
        raise ValueError(f"the weights at {place} are those of {group.attrs['name']!r}, not of {name!r}")
    made = []
    for i in range(len(group)):
        stored = _child(group, str(i), h5py.Dataset)
        if stored is None or stored.external or stored.is_virtual or stored.dtype.kind != "f":
            raise ValueError(f"weight {i} at {place} is not stored as plain numbers")
        if stored.size > WEIGHT_LIMIT:
            raise ValueError(f"weight {i} at {place} has {stored.size} numbers")
        made.append(torch.from_numpy(np.array(stored[()], np.float32)))
    return made


def _child(group: Any, name: str, kind: type) -> Any:
    """The member `name`, None if there is none; a link to another place or file is not followed."""
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


def _make(kind: str, config: Any, weights: list[Tensor]) -> KerasLayer:
    made: KerasLayer
    if not isinstance(config["use_scale"], bool):
        raise ValueError(f"use_scale must be true or false, got {config['use_scale']!r}")
    if kind == "Attention":
        made = KerasAttention(config["use_scale"], config["score_mode"], keras_empty_rows=True)
    else:
        size = weights[0].numel() if weights else 0
        made = KerasAdditiveAttention(size, config["use_scale"] and size > 0, keras_empty_rows=True)
    parameters = dict(made.named_parameters())
    shapes = [tuple(parameter.shape) for parameter in parameters.values()]
    found = [tuple(weight.shape) for weight in weights]
    if shapes != found or bool(config["use_scale"]) != ("scale" in parameters):
        raise ValueError(f"its weights have the shapes {found}, which is not what {kind} has with this configuration")
    made.load_state_dict(dict(zip(parameters, weights, strict=True)))
    return made
