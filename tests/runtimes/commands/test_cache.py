"""`edge-attn cache` lists and deletes engines, and reports unusable folders."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_processes import ENGINE, KEY, build, start, wait_for

from edge_attn.errors import InputError
from edge_attn.runtimes.commands.cache import clear_cache, list_cache
from edge_attn.runtimes.trt.engine_cache import EngineCache, cache_folder

NOBODY = 65534


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "engines"
    folder.mkdir()
    return folder


def test_engine_being_built_is_listed_and_not_deleted(tmp_path):
    with start(tmp_path, 1.0) as process:
        wait_for(tmp_path / "log")
        first, last = list_cache(tmp_path).splitlines()
        assert "being built" in first
        assert last.endswith("0 engines, 0.0 MB; 1 is being built")
        build(EngineCache(tmp_path), dataclasses.replace(KEY, gpu="Thor"))
        assert clear_cache(tmp_path).endswith("removed 1 engine, 0.0 MB; 1 is being built")
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert EngineCache(tmp_path).get(KEY) == ENGINE


def test_list_and_clear_count_the_engines(tmp_path):
    assert list_cache(tmp_path) == f"{tmp_path / 'engines'}: 0 engines, 0.0 MB"
    build(EngineCache(tmp_path))
    for name in ("tensorrt-10.3.0-Orin-8.7.timing", "tensorrt-rtx-1.7.1-H200.kernels"):
        (tmp_path / "engines" / name).touch()
    first, last = list_cache(tmp_path).splitlines()
    assert "toy.zip: step for trt-fp16  tensorrt 10.3.0  Orin  fp16" in first
    assert KEY.digest in first
    assert last.endswith("1 engine, 0.0 MB")
    assert clear_cache(tmp_path) == f"{tmp_path / 'engines'}: removed 1 engine, 0.0 MB"
    assert [path.name for path in tmp_path.rglob("*")] == ["engines"]
    assert clear_cache(tmp_path).endswith("removed 0 engines, 0.0 MB")


@pytest.mark.parametrize(
    ("name", "is_engine"),
    [
        (f"{KEY.digest}.engine", True),
        (f".{KEY.digest}.engine.7.partial", True),
        (f".{KEY.digest}.json.7.partial", True),
        (f"{KEY.digest}.lock", False),
        (".tensorrt-10.3.0-Orin-8.7.timing.7.partial", False),
    ],
)
def test_leftovers_of_a_killed_build_are_listed_and_deleted(tmp_path, folder, name, is_engine):
    (folder / name).write_bytes(bytes(2 * 10**6 * is_engine))
    *lines, last = list_cache(tmp_path).splitlines()
    count = "1 engine, 2.0 MB" if is_engine else "0 engines, 0.0 MB"
    assert last == f"{folder}: {count}"
    assert ["left by an interrupted build" in line for line in lines] == [True] * is_engine
    assert clear_cache(tmp_path) == f"{folder}: removed {count}"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", [f"{KEY.digest}.engine", "tensorrt-10.3.0-Orin-8.7.timing"])
def test_engine_that_cannot_be_deleted_is_an_error(edge_attn_cli, tmp_path, folder, name):
    build(EngineCache(tmp_path), dataclasses.replace(KEY, gpu="Thor"))
    (folder / name / "in the way").mkdir(parents=True)
    error = "removed 1 engine, 0.0 MB; 1 cannot be removed: Is a directory"
    edge_attn_cli("cache", "clear", "--cache-dir", tmp_path, code=4, error=error)


@pytest.mark.parametrize(
    "change",
    [
        {"parts": {"runtime": 5}},
        {"parts": {"precision": None}},
        {"parts": [["a", 1]]},
        {"parts": "abc"},
        {"parts": None},
        {"what": 1},
        {"what": "two\nlines"},
    ],
)
def test_invalid_record_is_listed_as_damaged(tmp_path, folder, change):
    build(EngineCache(tmp_path))
    path = folder / f"{KEY.digest}.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    first, last = list_cache(tmp_path).splitlines()
    assert "a damaged record" in first
    assert last.endswith("1 engine, 0.0 MB")
    build(EngineCache(tmp_path), dataclasses.replace(KEY, gpu="Thor"))


def test_foreign_files_are_not_deleted(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir()
    foreign_files = {folder / "config.json", folder / "my.engine", folder / ".my.partial", tmp_path / "run.timing"}
    for path in foreign_files:
        path.write_text("{}", encoding="utf-8")
    assert list_cache(tmp_path).endswith("0 engines, 0.0 MB")
    assert "removed 0 engines" in clear_cache(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == foreign_files


def test_file_instead_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--cache-dir must be a folder, got the file"):
        list_cache(tmp_path / "file")


@pytest.mark.parametrize(
    ("set_to", "expected"), [("/somewhere", "/somewhere/edge-attn"), ("relative", None), ("", None), (None, None)]
)
def test_default_folder_is_in_the_users_cache(monkeypatch, set_to, expected):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if set_to is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", set_to)
    assert cache_folder(None) == Path(expected or Path.home() / ".cache" / "edge-attn")
    assert cache_folder(Path("chosen")) == Path("chosen")


# ---- unusable folders

VERBS = ("list", "clear")


@pytest.fixture
def is_nobody(tmp_path) -> Iterator[None]:
    """Run the test as a user who can neither enter `tmp_path / "private"` nor write to `tmp_path`."""
    (tmp_path / "private").mkdir(mode=0)
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        os.seteuid(NOBODY if user == 0 else user)
    except OSError:
        pytest.skip("this user cannot become another")
    try:
        with pytest.raises(PermissionError):
            list((tmp_path / "private").iterdir())
        yield
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
        (tmp_path / "private").chmod(0o755)


@pytest.mark.usefixtures("is_nobody")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("folder", ["private", "private/inside"])
def test_inaccessible_folder_is_an_error(edge_attn_cli, tmp_path, verb, folder):
    error = "Permission denied; choose another folder"
    edge_attn_cli("cache", verb, "--cache-dir", tmp_path / folder, code=4, error=error)


@pytest.mark.usefixtures("is_nobody")
@pytest.mark.parametrize("verb", VERBS)
def test_inaccessible_default_folder_is_an_error(edge_attn_cli, monkeypatch, tmp_path, verb):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "private"))
    error = "Permission denied; choose another folder with --cache-dir"
    edge_attn_cli("cache", verb, code=4, error=error)


@pytest.mark.usefixtures("is_nobody")
@pytest.mark.parametrize("folder", ["private", "new"])
def test_engine_that_cannot_be_stored_is_an_error(tmp_path, folder):
    with pytest.raises(InputError, match=r"cannot keep an engine: Permission denied; choose another folder"):
        build(EngineCache(tmp_path / folder))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("name", "reason"), [("a" * 300, "File name too long"), ("file/inside", "Not a directory")])
def test_invalid_folder_name_is_an_error(edge_attn_cli, tmp_path, verb, name, reason):
    (tmp_path / "file").touch()
    error = f"cannot be used: {reason}; choose another folder"
    edge_attn_cli("cache", verb, "--cache-dir", tmp_path / name, code=4, error=error)


@pytest.mark.parametrize("verb", VERBS)
def test_user_without_home_must_choose_a_folder(edge_attn_cli, monkeypatch, verb):
    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    edge_attn_cli("cache", verb, code=4, error="use --cache-dir or set XDG_CACHE_HOME")
