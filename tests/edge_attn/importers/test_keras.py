"""Keras' attention layers from files that Keras wrote, and from damaged or unusual files."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_attn.errors import InputError, MissingExtraError
from edge_attn.importers.keras import CONFIG, WEIGHTS, load_keras
from edge_attn.models.layers.keras import KerasAdditiveAttention, KerasAttention

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras"
)
h5py = pytest.importorskip("h5py", reason="h5py is not installed")
torch.set_num_threads(1)

TGT, SRC, SIZE = 3, 5, 4
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Attention", {}),
    "scaled": ("Attention", {"use_scale": True}),
    "concat": ("Attention", {"score_mode": "concat", "dropout": 0.3}),
    "both": ("Attention", {"use_scale": True, "score_mode": "concat"}),
    "additive": ("AdditiveAttention", {"use_scale": False}),
    "scaled additive": ("AdditiveAttention", {}),
}


def random_layer(keras: Any, kind: str, name: str) -> Any:
    """Return a Keras layer with random weights."""
    class_name, options = LAYERS[kind]
    layer = getattr(keras.layers, class_name)(**options, name=name)
    layer.build([(None, TGT, SIZE), (None, SRC, SIZE)])
    torch.manual_seed(len(name))
    layer.set_weights([torch.randn(weight.shape).numpy() for weight in layer.get_weights()])
    return layer


def saved(keras: Any, path: Path, *layers: Any, nested: bool = False) -> Path:
    """Save a model of parallel layers, or a model that contains this model."""
    inputs = [keras.Input((TGT, SIZE)), keras.Input((SRC, SIZE))]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    if nested:
        outer = [keras.Input((TGT, SIZE)), keras.Input((SRC, SIZE))]
        model = keras.Model(outer, model(outer))
    model.save(path)
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare both layers; all keys of one row are masked."""
    torch.manual_seed(0)
    query, value = torch.randn(2, TGT, SIZE), torch.randn(2, SRC, SIZE)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected_outputs = theirs([query, value], mask=[None, mask], return_attention_scores=True)
    with torch.no_grad():
        for actual, expected in zip(ours(query, value, value_mask=mask), expected_outputs, strict=True):
            torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True], ids=["layer", "layer of a nested model"])
@pytest.mark.parametrize("name", LAYERS)
def test_saved_layer_equals_keras(keras: Any, name: str, nested: bool, tmp_path: Path) -> None:
    theirs = random_layer(keras, name, "mine")
    ours = load_keras(saved(keras, tmp_path / "model.keras", theirs, nested=nested))
    assert type(ours) is {"Attention": KerasAttention, "AdditiveAttention": KerasAdditiveAttention}[LAYERS[name][0]]
    assert len(list(ours.parameters())) == len(theirs.get_weights())
    assert_same(ours, theirs)


def test_layer_is_selected_by_name(keras: Any, tmp_path: Path) -> None:
    theirs = {
        f"{name} {i}": random_layer(keras, name, f"{name} {i}")
        for name in ("scaled", "scaled additive")
        for i in range(3)
    }
    path = saved(keras, tmp_path / "model.keras", *theirs.values())
    for name, layer in theirs.items():
        assert_same(load_keras(path, name), layer)
    with pytest.raises(InputError, match=r"it has 'scaled 0', .*; choose one with layer="):
        load_keras(path)
    with pytest.raises(InputError, match="0 of them have the name 'other'"):
        load_keras(path, "other")


def test_model_without_attention_is_refused(keras: Any, tmp_path: Path) -> None:
    inputs = keras.Input((SIZE,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="no Functional or Sequential model in it declares one"):
        load_keras(tmp_path / "model.keras")


def test_keras_is_not_imported(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(keras, tmp_path / "model.keras", random_layer(keras, "both", "mine"))
    monkeypatch.setitem(sys.modules, "keras", None)
    assert isinstance(load_keras(path), KerasAttention)


def test_missing_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed; run: pip install 'edge-attn\[keras\]'"):
        load_keras(tmp_path / "model.keras")


# ---- damaged and unusual files

PATH = "layers/attention/vars"


def written(path: Path, config: object, fill: Callable[[Any], None]) -> Path:
    """Write a `.keras` file with the configuration and the weights that `fill` writes."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        fill(file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CONFIG, config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr(WEIGHTS, weights.getvalue())
    return path


def described(kind: str = "Attention", module: str = "keras.layers", **options: object) -> dict[str, Any]:
    config = {"name": "mine", "use_scale": True, **({"score_mode": "dot"} if kind == "Attention" else {}), **options}
    return {
        "class_name": "Functional",
        "config": {"layers": [{"class_name": kind, "module": module, "config": config}]},
    }


def one_number(file: Any) -> None:
    file[f"{PATH}/0"] = 2.0


def test_minimal_file_is_loaded(tmp_path: Path) -> None:
    """The refused files below are changes of this one."""
    layer = load_keras(written(tmp_path / "model.keras", described(), one_number))
    assert isinstance(layer, KerasAttention)
    assert layer.scale is not None
    assert layer.scale.item() == 2.0


def external_link(file: Any) -> None:
    file[PATH.rpartition("/")[0]] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: Any) -> None:
    file["other"] = 2.0
    file.create_group(PATH)["0"] = h5py.SoftLink("/other")


def external_numbers(file: Any) -> None:
    file.create_dataset(f"{PATH}/0", (8,), "float32", external=[("/etc/passwd", 0, 32)])


def virtual_numbers(file: Any) -> None:
    layout = h5py.VirtualLayout((1,), "float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (1,))
    file.create_virtual_dataset(f"{PATH}/0", layout)


def words(file: Any) -> None:
    file[f"{PATH}/0"] = "a word"


def huge(file: Any) -> None:
    file.create_dataset(f"{PATH}/0", (1 << 40,), "float32", chunks=(1024,))


def weights_of_other_layer(file: Any) -> None:
    one_number(file)
    file[PATH].attrs["name"] = "yours"


def additional_number(file: Any) -> None:
    one_number(file)
    file[f"{PATH}/1"] = 2.0


def many_numbers(file: Any) -> None:
    for i in range(50):
        file[f"{PATH}/{i}"] = 2.0


def number_instead_of_group(file: Any) -> None:
    file[PATH.rpartition("/")[0]] = 2.0


REFUSED: dict[str, tuple[object, Callable[[Any], None], str]] = {
    "not JSON": (b"{", one_number, "Expecting"),
    "deep JSON": (b"[" * 100_000, one_number, "recursion"),
    "no model": ([], one_number, "describes no model"),
    "no layers": ({"config": {"layers": 3}}, one_number, "not iterable"),
    "custom Attention": (described(module="mine"), one_number, "declares one"),
    "no module": ({"config": {"layers": [{"class_name": "Attention"}]}}, one_number, "layer: module"),
    "another score mode": (described(score_mode="mine"), one_number, "score_mode must be one of"),
    "a link to another file": (described(), external_link, "attention is a link"),
    "a link": (described(), soft_link, "0 is a link"),
    "numbers from another file": (described(), external_numbers, "not stored as plain numbers"),
    "virtual numbers": (described(), virtual_numbers, "not stored as plain numbers"),
    "words": (described(), words, "not stored as plain numbers"),
    "more than memory": (described(), huge, "1099511627776 elements"),
    "weights of another layer": (described(), weights_of_other_layer, "belong to 'yours', not to 'mine'"),
    "an additional number": (described(), additional_number, "shapes"),
    "many numbers": (described(), many_numbers, "has 50 weights, expected at most 2"),
    "no numbers": (described(), lambda file: None, "shapes"),
    "no additive scale": (described("AdditiveAttention"), lambda file: None, "shapes"),
    "a number instead of a group": (described(), number_instead_of_group, "expected a Group"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_unusual_file_is_refused(case: str, tmp_path: Path) -> None:
    config, fill, message = REFUSED[case]
    path = written(tmp_path / "model.keras", config, fill)
    with pytest.raises(InputError, match=message) as raised:
        load_keras(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04 and no more"], ids=str)
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"is not a \.keras file, or is damaged"):
        load_keras(tmp_path / "model.keras")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_keras(tmp_path / "none.keras")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model.keras", described(), one_number)
    for length in (0, 10, 500):
        with zipfile.ZipFile(path) as archive:
            weights = archive.read(WEIGHTS)[:length]
        with zipfile.ZipFile(tmp_path / "cut.keras", "w") as archive:
            archive.writestr(CONFIG, json.dumps(described()))
            archive.writestr(WEIGHTS, weights)
        with pytest.raises(InputError, match="has no usable Keras attention layer"):
            load_keras(tmp_path / "cut.keras")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_file_of_many_layers_is_read_in_linear_time(tmp_path: Path, compression: int) -> None:
    count, weights, path = 10_000, io.BytesIO(), tmp_path / "model.keras"
    with h5py.File(weights, "w") as file:
        for i in (0, count - 1):
            file[f"layers/attention{f'_{i}' if i else ''}/vars/0"] = np.float32(i)
        file["other"] = np.random.default_rng(1).random(1 << 18)
    config = {"use_scale": True, "score_mode": "dot"}
    layer = {"class_name": "Attention", "module": "keras.layers"}
    layers = [{**layer, "config": {"name": f"a{i}", **config}} for i in range(count)]
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(CONFIG, json.dumps({"config": {"layers": layers}}))
        archive.writestr(WEIGHTS, weights.getvalue())
    started = time.process_time()
    assert load_keras(path, f"a{count - 1}").scale.item() == count - 1
    assert time.process_time() - started < 5
    with pytest.raises(InputError, match=r"it has 'a0', .* 'a7' and 9992 more; choose one with layer="):
        load_keras(path)


def test_compressed_weights_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_attn.importers.keras.UNPACKED_LIMIT", 100)
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, json.dumps(described()))
        archive.writestr(WEIGHTS, bytes(1 << 21))
    with pytest.raises(InputError, match=r"its compressed model.weights.h5 has more than 100 bytes"):
        load_keras(path)
