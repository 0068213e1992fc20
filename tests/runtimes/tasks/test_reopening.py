"""A loaded model can be pickled, copied and sent to a process: it is opened again from its path."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import edge_attn
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import BundleError, InputError, UsageError
from edge_attn.runtimes.tasks.translation import Translator

SENTENCE = "every good cat calls a child"


@pytest.fixture
def model(toy_bundle):
    return edge_attn.load(toy_bundle, threads=1)


def translate(model: Translator) -> str:
    return model.translate([SENTENCE])[0].text


@pytest.mark.parametrize(
    "again",
    [lambda model: pickle.loads(pickle.dumps(model)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copied_model_gives_the_same_results(model, again):
    copied = again(model)
    assert copied.runtime is not model.runtime
    assert translate(copied) == translate(model)
    model.close()
    assert translate(copied)


def test_pickle_contains_the_path_and_the_options(toy_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(toy_bundle.parent)
    options = RuntimeOptions(threads=1, cache_dir=tmp_path)
    data = pickle.dumps(Translator.open(Path(toy_bundle.name), options=options))
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)
    assert translate(pickle.loads(data))


@pytest.mark.usefixtures("needs_torch")
def test_checkpoint_is_opened_again(toy_checkpoint):
    model = Translator.open(toy_checkpoint, "torch")
    assert translate(copy.deepcopy(model)) == translate(model)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_worker_process_translates(model, method):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(Translator.translate, model, [SENTENCE]).result(60)[0].text == translate(model)
        with pytest.raises(InputError):  # an error comes back too
            pool.submit(Translator.open, Path("no-bundle")).result(60)


def test_removed_bundle_is_named(toy_bundle, tmp_path):
    path = tmp_path / "b.zip"
    path.write_bytes(toy_bundle.read_bytes())
    data = pickle.dumps(edge_attn.load(path))
    path.unlink()
    with pytest.raises(BundleError, match=r"b\.zip is not a bundle: there is no such file"):
        pickle.loads(data)


def test_closed_model_cannot_be_copied(model):
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        copy.copy(model)


def test_model_without_a_path_cannot_be_pickled(toy_bundle, model):
    built = Translator(model.runtime, model.text, model.max_source)
    with pytest.raises(TypeError, match="not opened from a path"):
        pickle.dumps(built)
