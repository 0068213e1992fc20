"""Tests of the reader of golden data: what does not fit the bundle is refused, in one line and without much memory."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.parity import reader
from edge_attn.parity.golden import FILES, Golden

Files = dict[str, bytes]
JSON, NPZ = FILES


@pytest.fixture(scope="session")
def opened(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


def with_files(opened: Bundle, files: Files, **manifest: Any) -> Bundle:
    changed = dataclasses.replace(opened.manifest, **manifest)
    return Bundle(Path("bundle"), changed, {**opened.files(), **files})


def in_arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Files], None]:
    """Return a change of the files that applies `change` to the arrays by name."""

    def rewrite(files: Files) -> None:
        with np.load(io.BytesIO(files[NPZ])) as stored:
            arrays = {name: stored[name].copy() for name in stored.files}
        change(arrays)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        files[NPZ] = data.getvalue()

    return rewrite


def of_array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Files], None]:
    return in_arrays(lambda arrays: arrays.update({name: np.asarray(change(arrays[name]))}))


def value_in(name: str, value: float) -> Callable[[Files], None]:
    return in_arrays(lambda arrays: arrays[name].reshape(-1).__setitem__(3, value))


def in_json(change: Callable[[Any], Any]) -> Callable[[Files], None]:
    """Return a change of the files that applies `change` to the content of the JSON file."""

    def rewrite(files: Files) -> None:
        content = json.loads(files[JSON])
        replacement = change(content)
        files[JSON] = json.dumps(content if replacement is None else replacement).encode()

    return rewrite


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    return lambda files: files.update({name: change(files[name])})


def with_header(name: str, header: bytes, data: bytes = b"") -> Callable[[Files], None]:
    """Return a change of the files that replaces one array by a .npy file with this text as its header."""

    def rewrite(files: Files) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(files[NPZ])) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for item in archive.infolist():
                content = archive.read(item)
                if item.filename == f"{name}.npy":
                    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
                new.writestr(item.filename, content)
        files[NPZ] = out.getvalue()

    return rewrite


def plain_array(_: bytes) -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    return data.getvalue()


def entry_twice(files: Files) -> None:
    data = io.BytesIO(files[NPZ])
    with zipfile.ZipFile(data, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("steps.rest.npy", archive.read("steps.rest.npy"))
    files[NPZ] = data.getvalue()


def hypothesis(**values: Any) -> Callable[[Files], None]:
    return in_json(lambda content: content["n_best"][2][1].update(values))


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
DAMAGE: dict[str, Callable[[Files], None]] = {
    "json cut": replaced(JSON, lambda data: data[:-30]),
    "json empty": replaced(JSON, lambda data: b""),
    "json not text": replaced(JSON, lambda data: b"\xff\xfe\x00"),
    "json deeply nested": replaced(JSON, lambda data: b"[" * 100_000),
    "json a list": in_json(lambda content: [1]),
    "json a number": in_json(lambda content: 3),
    "json a long number": replaced(JSON, lambda data: data.replace(b'"noise": ', b'"noise": ' + b"9" * 5000, 1)),
    "key missing": in_json(lambda content: content.pop("sources") and None),
    "key unknown": in_json(lambda content: content.update(more=1)),
    "arrays in json": in_json(lambda content: content.update(arrays={"a": 1})),
    "tokens of text": in_json(lambda content: content["sources"].__setitem__(0, "text")),
    "tokens of floats": in_json(lambda content: content["sources"].__setitem__(0, [4.5])),
    "source token too large": in_json(lambda content: content["sources"][0].__setitem__(0, 10**6)),
    "source token negative": in_json(lambda content: content["sources"][0].__setitem__(0, -1)),
    "source token of 2 ** 63": in_json(lambda content: content["sources"][0].__setitem__(0, 2**63)),
    "source empty": in_json(lambda content: content["sources"][0].clear()),
    "source too long": in_json(lambda content: content["sources"][0].extend([4] * 1000)),
    "target token too large": in_json(lambda content: content["greedy"][0]["tokens"].__setitem__(0, 10**6)),
    "target token negative": in_json(lambda content: content["n_best"][0][0]["tokens"].__setitem__(0, -5)),
    "hypothesis too long": in_json(lambda content: content["n_best"][0][0]["tokens"].extend([4] * 1000)),
    "log-probability NaN": hypothesis(log_prob=float("nan")),
    "log-probability above 0": hypothesis(log_prob=5.0),
    "score infinite": hypothesis(score=float("inf")),
    "noise NaN": hypothesis(noise=float("nan")),
    "noise infinite": hypothesis(noise=float("inf")),
    "noise negative": hypothesis(noise=-1e-6),
    "half of a character in a sentence": in_json(lambda content: content["sentences"].__setitem__(0, "a \ud800")),
    "half of a character in a text": hypothesis(text="\udfff"),
    "beam of zero": in_json(lambda content: content["search"].update(beam=0)),
    "beam too large": in_json(lambda content: content["search"].update(beam=500, n_best=5)),
    "beam of 2 ** 40": in_json(lambda content: content["search"].update(beam=2**40)),
    "samples": in_json(lambda content: content["search"].update(sample=True, beam=1)),
    "too many hypotheses": in_json(lambda content: content["search"].update(n_best=1)),
    "sentence lost": in_json(lambda content: content["sentences"].pop() and None),
    "n-best list empty": in_json(lambda content: content["n_best"][0].clear()),
    "no sentence": in_json(lambda content: {**content, "sentences": [], "sources": [], "greedy": [], "n_best": []}),
    "npz cut": replaced(NPZ, lambda data: data[:-200]),
    "npz empty": replaced(NPZ, lambda data: b""),
    "npz noise": replaced(NPZ, lambda data: bytes(range(256)) * 9),
    "npz bit flipped": replaced(NPZ, lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:]),
    "npz an array": replaced(NPZ, plain_array),
    "npz entry twice": entry_twice,
    "array pickled": of_array("steps.rest", lambda _: np.array([{}], object)),
    "array lost": in_arrays(lambda arrays: arrays.pop("steps.projections")),
    "array unknown": in_arrays(lambda arrays: arrays.update(more=np.zeros(3))),
    "state lost": in_arrays(lambda arrays: arrays.pop("steps.next_state.hidden.0")),
    "beam alignment lost": in_arrays(lambda arrays: arrays.pop("beam.alignment")),
    "row lost": of_array("steps.rest", lambda rows: rows[1:]),
    "position lost": of_array("encoder.memory.keys", lambda rows: rows[1:]),
    "column lost": of_array("encoder.memory.keys", lambda rows: rows[:, 1:]),
    "weight lost": of_array("steps.alignment", lambda rows: rows[1:]),
    "array a number": of_array("steps.rest", lambda _: np.float32(1)),
    "array of doubles": of_array("steps.rest", lambda rows: rows.astype(np.float64)),
    "array of the other byte order": of_array("steps.rest", lambda rows: rows.astype(">f4")),
    "array of text": of_array("steps.rest", lambda rows: rows.astype("U5")),
    "array in another order": of_array("steps.projections", np.asfortranarray),
    "mask of numbers": of_array("encoder.memory.mask", lambda rows: rows.astype(np.float32)),
    "token of the best too large": value_in("steps.top_ids", 10**6),
    "token of the best negative": value_in("steps.top_ids", -1),
    "noise of a step NaN": value_in("steps.noise", np.nan),
    "noise of a step infinite": value_in("steps.noise", np.inf),
    "noise of a step negative": value_in("steps.noise", -1e-9),
    "projection NaN": value_in("steps.projections", np.nan),
    "rest above 0": value_in("steps.rest", 2.0),
    "alignment NaN": value_in("beam.alignment", np.nan),
    "header of 4 TiB": with_header("steps.rest", HUGE),
    "header of brackets": with_header("steps.rest", b"(" * 10_001),
    "header of nested brackets": with_header("steps.rest", HUGE.replace(b"(1099511627776,)", b"(" * 90 + b")" * 90)),
    "header of a call": with_header("steps.rest", b"__import__('os').abort()\n"),
    "array without data": with_header("steps.rest", HUGE.replace(b"1099511627776", b"709")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_golden_data_is_refused(opened, damage):
    files = {name: opened.read(name) for name in FILES}
    DAMAGE[damage](files)
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"^bundle: golden/golden\.(json|npz)") as refused:
        reader.load(with_files(opened, files))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_bundle_without_golden_data_is_refused(opened):
    files = {name: data for name, data in opened.files().items() if name not in FILES}
    with pytest.raises(BundleError, match=r"golden/golden.json is missing"):
        reader.load(Bundle(Path("bundle"), opened.manifest, files))


def test_golden_data_is_read_as_it_was_written(opened, toy_golden):
    loaded = reader.load(with_files(opened, toy_golden.files()))
    assert loaded == toy_golden
    assert loaded.arrays.keys() == toy_golden.arrays.keys()
    assert all(np.array_equal(loaded.arrays[name], rows) for name, rows in toy_golden.arrays.items())


def test_search_options_are_read_as_they_were_written(opened, toy_golden):
    config = dataclasses.replace(toy_golden.search, no_repeat_ngram=3, coverage_penalty=0.25)
    assert reader.load(with_files(opened, dataclasses.replace(toy_golden, search=config).files())).search == config


def without_last_sentence(golden: Golden) -> Golden:
    arrays = {}
    for name, rows in golden.arrays.items():
        if name.endswith(".alignment"):
            arrays[name] = np.concatenate([part.reshape(-1) for part in golden.alignments(name)[:-1]])
        elif name.startswith("steps."):
            arrays[name] = rows[: golden.steps()[-2].stop]
        elif name.startswith("encoder."):
            arrays[name] = rows[: golden.positions()[-2].stop] if len(rows) > len(golden) else rows[:-1]
    lists = (golden.sentences, golden.sources, golden.greedy, golden.n_best)
    shorter = dict(zip(("sentences", "sources", "greedy", "n_best"), (part[:-1] for part in lists), strict=True))
    return dataclasses.replace(golden, **shorter, arrays=arrays)


def test_manifest_that_lists_other_contents_is_refused(opened, toy_golden):
    """Golden data that was cut down fits itself: only the manifest shows that it was more."""
    files, contents = without_last_sentence(toy_golden).files(), toy_golden.contents()
    assert len(reader.load(with_files(opened, files))) == len(toy_golden) - 1
    assert len(reader.load(with_files(opened, toy_golden.files(), golden=contents))) == len(toy_golden)
    with pytest.raises(BundleError, match="golden data has 330 hypotheses, the manifest lists 335"):
        reader.load(with_files(opened, files, golden=contents))
    with pytest.raises(BundleError, match="the manifest lists 0"):
        reader.load(with_files(opened, toy_golden.files(), format=4))


def test_dropped_hypotheses_are_refused(opened, toy_golden):
    shorter = dataclasses.replace(toy_golden, n_best=tuple(hypotheses[:1] for hypotheses in toy_golden.n_best))
    with pytest.raises(BundleError, match="golden data has 67 hypotheses, the manifest lists 335"):
        reader.load(with_files(opened, shorter.files(), golden=toy_golden.contents()))
