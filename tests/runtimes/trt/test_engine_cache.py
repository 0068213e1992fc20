"""The engine cache, with real processes that build, wait and are killed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from engine_processes import ENGINE, KEY, build, files, start, wait_for

from edge_attn.errors import InputError
from edge_attn.runtimes.trt.engine_cache import EngineCache, EngineKey, RejectedEngine
from edge_attn.storage.locks import file_lock, is_locked

# ---- one process


def test_an_engine_is_built_once_and_then_found(tmp_path):
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert build(cache) == [f"{KEY.what}: building the engine (there is none yet)"]
    assert build(cache) == []
    assert EngineCache(tmp_path).get(KEY) == ENGINE
    assert files(tmp_path) == {".engine", ".json"}


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(EngineKey) if field.name != "what"])
def test_an_engine_of_anything_else_is_never_found(tmp_path, part):
    cache = EngineCache(tmp_path)
    build(cache)
    other = dataclasses.replace(KEY, **{part: "other"})
    assert cache.get(other) is None
    (said,) = build(cache, other, b"another")
    expected = {"runtime": "TensorRT was tensorrt 10.3.0, is other", "gpu": "the GPU was Orin, is other"}
    assert expected.get(part, "was " if part in ("compute_capability", "precision") else "changed") in said
    assert cache.get(KEY) == ENGINE


def test_the_same_engine_for_another_bundle_is_found(tmp_path):
    cache = EngineCache(tmp_path)
    build(cache)
    assert build(cache, dataclasses.replace(KEY, what="copy.zip: step")) == []


def cut(engine: Path, record: Path) -> None:
    engine.write_bytes(ENGINE[:-1])


def change(engine: Path, record: Path) -> None:
    engine.write_bytes(b"\xff" + ENGINE[1:])


def drop(engine: Path, record: Path) -> None:
    engine.unlink()


def scribble(engine: Path, record: Path) -> None:
    record.write_text("{", encoding="utf-8")


def not_text(engine: Path, record: Path) -> None:
    record.write_bytes(b"\xff\xfe\xff")


def another_record(engine: Path, record: Path) -> None:
    content = json.loads(record.read_text(encoding="utf-8"))
    content["parts"]["gpu"] = "Thor"
    record.write_text(json.dumps(content), encoding="utf-8")


def a_list(engine: Path, record: Path) -> None:
    record.write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "the cached engine has 10239 bytes, expected 10240"),
        (change, "the cached engine was changed: its sha256 is not the record's"),
        (drop, "the cached engine cannot be read: No such file"),
        (scribble, "the record of the cached engine is damaged"),
        (a_list, "the record of the cached engine is damaged"),
        (not_text, "the record of the cached engine cannot be read"),
        (another_record, "the record of the cached engine is of another one"),
    ],
)
def test_a_damaged_entry_is_rebuilt_with_the_reason(tmp_path, damage, reason):
    cache = EngineCache(tmp_path)
    build(cache)
    damage(*(tmp_path / "engines" / f"{KEY.digest}{suffix}" for suffix in (".engine", ".json")))
    assert cache.get(KEY) is None
    cache.entries()
    (said,) = build(cache)
    assert reason in said
    assert build(cache) == []


def test_an_engine_that_was_refused_is_rebuilt_once(tmp_path):
    """Whoever comes later with the same refusal finds the new one."""
    cache = EngineCache(tmp_path)
    build(cache)
    said: list[str] = []
    refused = RejectedEngine(ENGINE, "TensorRT does not load it")
    assert cache.build_once(KEY, lambda: b"new", said.append, refused=refused) == b"new"
    assert said == ["toy.zip: step for trt-fp16: building the engine (TensorRT does not load it)"]
    assert cache.build_once(KEY, lambda: b"never", said.append, refused=refused) == b"new"
    assert cache.get(KEY) == b"new"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail() -> bytes:
        raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        EngineCache(tmp_path).build_once(KEY, fail, print)
    assert list((tmp_path / "engines").iterdir()) == []


# ---- size


def test_the_engines_used_longest_ago_go_first(tmp_path):
    cache = EngineCache(tmp_path)
    keys = [dataclasses.replace(KEY, gpu=f"gpu {i}") for i in range(4)]
    for i, key in enumerate(keys[:3]):
        build(cache, key)
        os.utime(tmp_path / "engines" / f"{key.digest}.json", (i, i))
    assert cache.get(keys[0]) == ENGINE  # and so it is used last
    said = build(EngineCache(tmp_path, limit_bytes=3 * (len(ENGINE) + 1000)), keys[3])
    assert said[1:] == [f"{KEY.what}: removed from the cache, which holds 0 MB"]
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]


def test_engines_that_are_used_together_do_not_drive_each_other_out(tmp_path):
    """What this cache made, or only found, stays, however small the limit is."""
    keys = [dataclasses.replace(KEY, graph=name) for name in ("encoder", "step", "another bundle's")]
    build(EngineCache(tmp_path), keys[2])
    build(EngineCache(tmp_path), keys[0])
    cache = EngineCache(tmp_path, limit_bytes=10)
    assert build(cache, keys[0]) == []
    said = build(cache, keys[1])
    assert said[1] == f"{KEY.what}: removed from the cache, which holds 0 MB"
    assert "these engines need at least 1 MB, cache_mb is 0" in said[2]
    assert [cache.get(key) is not None for key in keys] == [True, True, False]
    again = EngineCache(tmp_path, limit_bytes=10)
    assert build(again, keys[0]) + build(again, keys[1]) == []


def test_that_engines_outgrow_the_cache_is_said_once(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=10)
    said = build(cache) + build(cache, dataclasses.replace(KEY, graph="step"))
    assert sum("cache_mb is 0" in line for line in said) == 1
    assert len(said) == 3


def test_an_engine_without_its_record_takes_up_room(tmp_path):
    build(EngineCache(tmp_path))
    left = tmp_path / "engines" / f"{'0' * 32}.engine"
    left.write_bytes(ENGINE)
    os.utime(left, (0, 0))
    said = build(EngineCache(tmp_path, 2 * len(ENGINE) + 2000), dataclasses.replace(KEY, gpu="Thor"))
    assert said[1:] == ["left by a build that was ended: removed from the cache, which holds 0 MB"]
    assert not left.exists()
    assert EngineCache(tmp_path).get(KEY) == ENGINE


# ---- disks that are full, and folders that cannot be written


def test_no_space_left_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        InputError, match=r"cannot keep an engine: No space left on device; free some space.*--cache-dir"
    ):
        build(EngineCache(tmp_path))
    assert list((tmp_path / "engines").iterdir()) == []
    monkeypatch.undo()
    assert "there is none yet" in build(EngineCache(tmp_path))[0]


def test_a_record_that_finds_no_space_takes_its_engine_with_it(tmp_path, monkeypatch):
    calls = []
    real = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        build(EngineCache(tmp_path))
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_file_that_may_not_grow_is_a_sentence(tmp_path):
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
    with start(tmp_path, 0, limit) as process:
        _, error = process.communicate(timeout=60)
    assert "InputError" in error
    assert "File too large; free some space" in error
    assert list((tmp_path / "engines").iterdir()) == []


def test_too_little_space_is_said_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 10**6))  # type: ignore[attr-defined]
    made = []
    with pytest.raises(InputError, match="1 MB are free, the engine needs about 50 MB; free some space"):
        EngineCache(tmp_path).build_once(KEY, lambda: bytes(made), print, expected=50 * 10**6)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot keep an engine: .*choose another folder with --cache-dir"):
        build(EngineCache(tmp_path / "file"))


# ---- several processes


def test_two_processes_that_want_one_engine_build_one(tmp_path):
    processes = [start(tmp_path, 1.0) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert (tmp_path / "log").read_text(encoding="utf-8") == "made "
    said = "".join(out for out, _ in outputs)
    assert said.count("building the engine") == 1
    assert said.count(f"{len(ENGINE)}\n") == 3
    assert files(tmp_path) == {".engine", ".json"}


def test_whoever_waits_says_so(tmp_path):
    with start(tmp_path, 1.5) as first:
        wait_for(tmp_path / "log")
        with start(tmp_path, 0) as second:
            out, _ = second.communicate(timeout=60)
        first.communicate(timeout=60)
    assert f"{KEY.what}: waiting for another process that builds it" in out


def test_a_killed_build_leaves_no_engine_and_the_next_one_builds(tmp_path):
    with start(tmp_path, 60) as process:
        wait_for(tmp_path / "log")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert files(tmp_path) == {".lock"}
    assert "there is none yet" in build(cache)[0]
    assert files(tmp_path) == {".engine", ".json"}


def test_whoever_waits_for_a_killed_build_builds(tmp_path):
    with start(tmp_path, 60) as first:
        wait_for(tmp_path / "log")
        with start(tmp_path, 0) as second:
            assert second.stdout is not None
            assert "waiting" in second.stdout.readline()
            first.send_signal(signal.SIGKILL)
            out, error = second.communicate(timeout=60)
    assert str(len(ENGINE)) in out, error
    assert (tmp_path / "log").read_text(encoding="utf-8") == "made made "


def test_a_build_killed_while_it_writes_leaves_no_engine(tmp_path):
    dies = "import os, signal\nos.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
    with start(tmp_path, 0, dies) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert files(tmp_path) == {".partial", ".lock"}
    build(cache)
    assert files(tmp_path) == {".engine", ".json"}


def test_a_disk_that_fails_while_the_engine_is_made_is_not_the_caches_fault(tmp_path):
    def fails() -> bytes:
        raise OSError(28, "No space left on device", "kernel.ptx")

    with pytest.raises(InputError, match=r"cannot be built: .*kernel\.ptx"):
        EngineCache(tmp_path).build_once(KEY, fails, lambda line: None)


# ---- locks


@pytest.fixture
def of_another_user(tmp_path, monkeypatch) -> Path:
    """A lock that may be read, not written, and in a sticky folder not opened with O_CREAT."""
    path, real = tmp_path / "engines" / f"{KEY.digest}.lock", os.open
    path.parent.mkdir()
    path.touch()

    def refuses(name: Path, flags: int, *mode: int) -> int:
        if Path(name) == path and path.exists() and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuses)
    return path


def test_a_lock_that_another_user_left_locks_nobody_out(tmp_path, of_another_user):
    assert "there is none yet" in build(EngineCache(tmp_path))[0]
    assert not of_another_user.exists()


def test_a_lock_that_another_user_holds_is_waited_for(of_another_user):
    with file_lock(of_another_user, blocking=False):
        assert is_locked(of_another_user)
        with pytest.raises(BlockingIOError), file_lock(of_another_user, blocking=False):
            pass
    assert not is_locked(of_another_user)
