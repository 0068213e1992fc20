"""Keras' layers from files that Keras itself wrote, and from files that nobody should write."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def made_layer(keras: Any, name: str, called: str) -> Any:
    """With weights that are none of the starting ones."""
    kind, options = LAYERS[name]
    layer = getattr(keras.layers, kind)(**options, name=called)
    layer.build([(None, TGT, SIZE), (None, SRC, SIZE)])
    torch.manual_seed(len(called))
    layer.set_weights([torch.randn(weight.shape).numpy() for weight in layer.get_weights()])
    return layer


def saved(keras: Any, path: Path, *layers: Any, inside: bool = False) -> Path:
    """A model of the layers side by side, or of a model of them."""
    inputs = [keras.Input((TGT, SIZE)), keras.Input((SRC, SIZE))]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    if inside:
        outer = [keras.Input((TGT, SIZE)), keras.Input((SRC, SIZE))]
        model = keras.Model(outer, model(outer))
    model.save(path)
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    """Of values with one row whose keys are all masked."""
    torch.manual_seed(0)
    query, value = torch.randn(2, TGT, SIZE), torch.randn(2, SRC, SIZE)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    said = theirs([query, value], mask=[None, mask], return_attention_scores=True)
    with torch.no_grad():
        for actual, wanted in zip(ours(query, value, value_mask=mask), said, strict=True):
            torch.testing.assert_close(actual, wanted.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("inside", [False, True], ids=["layer", "layer of a model inside"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_saved_layer_says_what_keras_says(keras: Any, name: str, inside: bool, tmp_path: Path) -> None:
    theirs = made_layer(keras, name, "mine")
    ours = load_keras(saved(keras, tmp_path / "model.keras", theirs, inside=inside))
    assert type(ours) is {"Attention": KerasAttention, "AdditiveAttention": KerasAdditiveAttention}[LAYERS[name][0]]
    assert len(list(ours.parameters())) == len(theirs.get_weights())
    assert_same(ours, theirs)


def test_of_several_layers_the_name_decides(keras: Any, tmp_path: Path) -> None:
    theirs = {
        f"{name} {i}": made_layer(keras, name, f"{name} {i}")
        for name in ("scaled", "scaled additive")
        for i in range(3)
    }
    path = saved(keras, tmp_path / "model.keras", *theirs.values())
    for name, layer in theirs.items():
        assert_same(load_keras(path, name), layer)
    with pytest.raises(InputError, match=r"it has 'scaled 0', .*, and layer is not given"):
        load_keras(path)
    with pytest.raises(InputError, match="0 of them are named 'other'"):
        load_keras(path, "other")


def test_a_model_without_attention_has_none(keras: Any, tmp_path: Path) -> None:
    inputs = keras.Input((SIZE,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="has none that a Functional or Sequential model declares"):
        load_keras(tmp_path / "model.keras")


def test_keras_itself_is_not_needed(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(keras, tmp_path / "model.keras", made_layer(keras, "both", "mine"))
    monkeypatch.setitem(sys.modules, "keras", None)
    assert isinstance(load_keras(path), KerasAttention)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed; run: pip install 'edge-attn\[keras\]'"):
        load_keras(tmp_path / "model.keras")


# ---- what is not such a file

PLACE = "layers/attention/vars"


def written(path: Path, config: object, fill: Callable[[Any], None]) -> Path:
    """A `.keras` file with the configuration, and the weights that `fill` writes."""
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
    file[f"{PLACE}/0"] = 2.0


def test_the_smallest_file_is_read(tmp_path: Path) -> None:
    """What the refusals below differ from."""
    layer = load_keras(written(tmp_path / "model.keras", described(), one_number))
    assert isinstance(layer, KerasAttention)
    assert layer.scale is not None
    assert layer.scale.item() == 2.0


def external_link(file: Any) -> None:
    file[PLACE.rpartition("/")[0]] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: Any) -> None:
    file["other"] = 2.0
    file.create_group(PLACE)["0"] = h5py.SoftLink("/other")


def external_numbers(file: Any) -> None:
    file.create_dataset(f"{PLACE}/0", (8,), "float32", external=[("/etc/passwd", 0, 32)])


def virtual_numbers(file: Any) -> None:
    layout = h5py.VirtualLayout((1,), "float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (1,))
    file.create_virtual_dataset(f"{PLACE}/0", layout)


def words(file: Any) -> None:
    file[f"{PLACE}/0"] = "a word"


def huge(file: Any) -> None:
    file.create_dataset(f"{PLACE}/0", (1 << 40,), "float32", chunks=(1024,))


def another_layers(file: Any) -> None:
    one_number(file)
    file[PLACE].attrs["name"] = "yours"


def a_number_too_many(file: Any) -> None:
    one_number(file)
    file[f"{PLACE}/1"] = 2.0


def a_number_where_a_group_belongs(file: Any) -> None:
    file[PLACE.rpartition("/")[0]] = 2.0


REFUSED: dict[str, tuple[object, Callable[[Any], None], str]] = {
    "not JSON": (b"{", one_number, "Expecting"),
    "deep JSON": (b"[" * 100_000, one_number, "recursion"),
    "no model": ([], one_number, "describes no model"),
    "no layers": ({"config": {"layers": 3}}, one_number, "not iterable"),
    "somebody's own Attention": (described(module="mine"), one_number, "has none that"),
    "no module": ({"config": {"layers": [{"class_name": "Attention"}]}}, one_number, "layer: module"),
    "another score mode": (described(score_mode="mine"), one_number, "score_mode must be one of"),
    "a link to another file": (described(), external_link, "attention is a link"),
    "a link": (described(), soft_link, "0 is a link"),
    "numbers from another file": (described(), external_numbers, "not stored as plain numbers"),
    "numbers by way of another file": (described(), virtual_numbers, "not stored as plain numbers"),
    "words": (described(), words, "not stored as plain numbers"),
    "more than memory holds": (described(), huge, "1099511627776 numbers"),
    "another layer's": (described(), another_layers, "are those of 'yours', not of 'mine'"),
    "a number too many": (described(), a_number_too_many, "shapes"),
    "no numbers": (described(), lambda file: None, "shapes"),
    "none for an additive scale": (described("AdditiveAttention"), lambda file: None, "shapes"),
    "a number, no group": (described(), a_number_where_a_group_belongs, "expected a Group"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_file_that_keras_would_not_write_is_refused_in_one_sentence(why: str, tmp_path: Path) -> None:
    config, fill, said = REFUSED[why]
    path = written(tmp_path / "model.keras", config, fill)
    with pytest.raises(InputError, match=said) as raised:
        load_keras(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04 and no more"], ids=str)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"is not a \.keras file, or is damaged"):
        load_keras(tmp_path / "model.keras")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_keras(tmp_path / "none.keras")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model.keras", described(), one_number)
    for length in (0, 10, 500):
        with zipfile.ZipFile(path) as archive:
            kept = archive.read(WEIGHTS)[:length]
        with zipfile.ZipFile(tmp_path / "cut.keras", "w") as archive:
            archive.writestr(CONFIG, json.dumps(described()))
            archive.writestr(WEIGHTS, kept)
        with pytest.raises(InputError, match="does not give a Keras attention layer"):
            load_keras(tmp_path / "cut.keras")
