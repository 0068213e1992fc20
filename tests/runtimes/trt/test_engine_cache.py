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
from edge_attn.runtimes.trt.engine_cache import EngineCache, RejectedEngine
from edge_attn.runtimes.trt.engine_key import EngineKey
from edge_attn.storage.locks import file_lock, is_locked

# ---- one process


def test_engine_is_built_once_and_then_read(tmp_path):
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert build(cache) == [f"{KEY.label}: building the engine (there is none yet)"]
    assert build(cache) == []
    assert EngineCache(tmp_path).get(KEY) == ENGINE
    assert files(tmp_path) == {".engine", ".json"}


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(EngineKey) if field.name != "label"])
def test_each_key_part_needs_its_own_engine(tmp_path, part):
    cache = EngineCache(tmp_path)
    build(cache)
    other = dataclasses.replace(KEY, **{part: "other"})
    assert cache.get(other) is None
    (line,) = build(cache, other, b"another")
    expected = {"runtime": "TensorRT was tensorrt 10.3.0, is other", "gpu": "the GPU was Orin, is other"}
    assert expected.get(part, "was " if part in ("compute_capability", "precision") else "changed") in line
    assert cache.get(KEY) == ENGINE


def test_engine_is_shared_between_bundles(tmp_path):
    cache = EngineCache(tmp_path)
    build(cache)
    assert build(cache, dataclasses.replace(KEY, label="copy.zip: step")) == []


def truncate_engine(engine: Path, record: Path) -> None:
    engine.write_bytes(ENGINE[:-1])


def change_engine(engine: Path, record: Path) -> None:
    engine.write_bytes(b"\xff" + ENGINE[1:])


def remove_engine(engine: Path, record: Path) -> None:
    engine.unlink()


def damage_record(engine: Path, record: Path) -> None:
    record.write_text("{", encoding="utf-8")


def not_utf8(engine: Path, record: Path) -> None:
    record.write_bytes(b"\xff\xfe\xff")


def other_record(engine: Path, record: Path) -> None:
    content = json.loads(record.read_text(encoding="utf-8"))
    content["parts"]["gpu"] = "Thor"
    record.write_text(json.dumps(content), encoding="utf-8")


def list_record(engine: Path, record: Path) -> None:
    record.write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate_engine, "the cached engine was changed: its sha256 is not the record's"),
        (change_engine, "the cached engine was changed: its sha256 is not the record's"),
        (remove_engine, "the cached engine cannot be read: No such file"),
        (damage_record, "the record of the cached engine is damaged"),
        (list_record, "the record of the cached engine is damaged"),
        (not_utf8, "the record of the cached engine is damaged"),
        (other_record, "the record of the cached engine belongs to another engine"),
    ],
)
def test_damaged_entry_is_rebuilt_with_the_reason(tmp_path, damage, reason):
    cache = EngineCache(tmp_path)
    build(cache)
    damage(*(tmp_path / "engines" / f"{KEY.digest}{suffix}" for suffix in (".engine", ".json")))
    assert cache.get(KEY) is None
    cache.entries()
    (line,) = build(cache)
    assert reason in line
    assert build(cache) == []


def test_rejected_engine_is_rebuilt_once(tmp_path):
    """A later call with the same rejected engine reads the new one."""
    cache = EngineCache(tmp_path)
    build(cache)
    lines: list[str] = []
    rejected = RejectedEngine(ENGINE, "TensorRT does not load it")
    assert cache.build_once(KEY, lambda: b"new", lines.append, rejected=rejected) == b"new"
    assert lines == ["toy.zip: step for trt-fp16: building the engine (TensorRT does not load it)"]
    assert cache.build_once(KEY, lambda: b"never", lines.append, rejected=rejected) == b"new"
    assert cache.get(KEY) == b"new"


def test_failed_build_leaves_no_file(tmp_path):
    def fail() -> bytes:
        raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        EngineCache(tmp_path).build_once(KEY, fail, print)
    assert list((tmp_path / "engines").iterdir()) == []


# ---- size


def test_least_recently_used_engine_is_removed_first(tmp_path):
    cache = EngineCache(tmp_path)
    keys = [dataclasses.replace(KEY, gpu=f"gpu {i}") for i in range(4)]
    for i, key in enumerate(keys[:3]):
        build(cache, key)
        os.utime(tmp_path / "engines" / f"{key.digest}.json", (i, i))
    assert cache.get(keys[0]) == ENGINE  # marks it as used now
    lines = build(EngineCache(tmp_path, limit_bytes=3 * (len(ENGINE) + 1000)), keys[3])
    assert lines[1:] == [f"{KEY.label}: removed from the cache, whose limit is 0 MB"]
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]


def test_engines_in_use_remain_over_the_limit(tmp_path):
    """An engine that this process built or read remains, however low the limit is."""
    keys = [dataclasses.replace(KEY, graph=name) for name in ("encoder", "step", "other bundle")]
    build(EngineCache(tmp_path), keys[2])
    build(EngineCache(tmp_path), keys[0])
    cache = EngineCache(tmp_path, limit_bytes=10)
    assert build(cache, keys[0]) == []
    lines = build(cache, keys[1])
    assert lines[1] == f"{KEY.label}: removed from the cache, whose limit is 0 MB"
    assert "these engines need at least 1 MB, cache_mb is 0" in lines[2]
    assert [cache.get(key) is not None for key in keys] == [True, True, False]
    again = EngineCache(tmp_path, limit_bytes=10)
    assert build(again, keys[0]) + build(again, keys[1]) == []


def test_exceeded_limit_is_reported_once(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=10)
    lines = build(cache) + build(cache, dataclasses.replace(KEY, graph="step"))
    assert sum("cache_mb is 0" in line for line in lines) == 1
    assert len(lines) == 3


def test_engine_without_record_counts_towards_the_limit(tmp_path):
    build(EngineCache(tmp_path))
    orphan = tmp_path / "engines" / f"{'0' * 32}.engine"
    orphan.write_bytes(ENGINE)
    os.utime(orphan, (0, 0))
    lines = build(EngineCache(tmp_path, 2 * len(ENGINE) + 2000), dataclasses.replace(KEY, gpu="Thor"))
    assert lines[1:] == ["left by an interrupted build: removed from the cache, whose limit is 0 MB"]
    assert not orphan.exists()
    assert EngineCache(tmp_path).get(KEY) == ENGINE


# ---- full disks, and folders that cannot be written


def test_full_disk_is_reported_and_leaves_no_file(tmp_path, monkeypatch):
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


def test_engine_is_removed_if_its_record_cannot_be_written(tmp_path, monkeypatch):
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


def test_file_size_limit_is_reported(tmp_path):
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
    with start(tmp_path, 0, limit) as process:
        _, error = process.communicate(timeout=60)
    assert "InputError" in error
    assert "File too large; free some space" in error
    assert list((tmp_path / "engines").iterdir()) == []


def test_too_little_space_is_reported_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="1 MB are free, the engine needs about 50 MB; free some space"):
        EngineCache(tmp_path).build_once(KEY, lambda: b"", print, expected_bytes=50 * 10**6)


def test_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot keep an engine: .*choose another folder with --cache-dir"):
        build(EngineCache(tmp_path / "file"))


# ---- several processes


def test_three_processes_build_one_engine(tmp_path):
    processes = [start(tmp_path, 1.0) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert (tmp_path / "log").read_text(encoding="utf-8") == "built "
    output = "".join(out for out, _ in outputs)
    assert output.count("building the engine") == 1
    assert output.count(f"{len(ENGINE)}\n") == 3
    assert files(tmp_path) == {".engine", ".json"}


def test_waiting_process_reports_it(tmp_path):
    with start(tmp_path, 1.5) as first:
        wait_for(tmp_path / "log")
        with start(tmp_path, 0) as second:
            out, _ = second.communicate(timeout=60)
        first.communicate(timeout=60)
    assert f"{KEY.label}: waiting for another process that builds it" in out


def test_killed_build_leaves_no_engine(tmp_path):
    with start(tmp_path, 60) as process:
        wait_for(tmp_path / "log")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert files(tmp_path) == {".lock"}
    assert "there is none yet" in build(cache)[0]
    assert files(tmp_path) == {".engine", ".json"}


def test_process_waiting_for_a_killed_build_builds(tmp_path):
    with start(tmp_path, 60) as first:
        wait_for(tmp_path / "log")
        with start(tmp_path, 0) as second:
            assert second.stdout is not None
            assert "waiting" in second.stdout.readline()
            first.send_signal(signal.SIGKILL)
            out, error = second.communicate(timeout=60)
    assert str(len(ENGINE)) in out, error
    assert (tmp_path / "log").read_text(encoding="utf-8") == "built built "


def test_build_killed_while_writing_leaves_no_engine(tmp_path):
    kill_at_fsync = "import os, signal\nos.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
    with start(tmp_path, 0, kill_at_fsync) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    cache = EngineCache(tmp_path)
    assert cache.get(KEY) is None
    assert files(tmp_path) == {".partial", ".lock"}
    build(cache)
    assert files(tmp_path) == {".engine", ".json"}


def test_disk_error_during_the_build_is_a_build_error(tmp_path):
    def fail() -> bytes:
        raise OSError(28, "No space left on device", "kernel.ptx")

    with pytest.raises(InputError, match=r"cannot be built: .*kernel\.ptx"):
        EngineCache(tmp_path).build_once(KEY, fail, lambda line: None)


# ---- locks


@pytest.fixture
def foreign_lock(tmp_path, monkeypatch) -> Path:
    """Create a lock file that this process may only read, and in a sticky folder not open with O_CREAT."""
    path, real = tmp_path / "engines" / f"{KEY.digest}.lock", os.open
    path.parent.mkdir()
    path.touch()

    def open_read_only(name: Path, flags: int, *mode: int) -> int:
        if Path(name) == path and path.exists() and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", open_read_only)
    return path


def test_unlocked_lock_file_of_another_user_is_ignored(tmp_path, foreign_lock):
    assert "there is none yet" in build(EngineCache(tmp_path))[0]
    assert not foreign_lock.exists()


def test_held_lock_of_another_user_blocks(foreign_lock):
    with file_lock(foreign_lock, blocking=False):
        assert is_locked(foreign_lock)
        with pytest.raises(BlockingIOError), file_lock(foreign_lock, blocking=False):
            pass
    assert not is_locked(foreign_lock)
