"""Cache of engines on disk. An engine is built once, on the machine that runs it, and is never part of a bundle.

    <folder>/engines/<key>.engine    the engine
    <folder>/engines/<key>.json      its key, sha256 and size, written last
    <folder>/engines/<key>.lock      exists while one process builds the engine and others wait

The key is a hash of everything that an engine depends on, so an engine of another GPU, version or graph is never read.
If the folder outgrows its limit, the least recently used engines are removed, except those in use by this process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import InputError
from edge_attn.runtimes.trt.engine_key import EngineKey
from edge_attn.storage.atomic import write_bytes
from edge_attn.storage.locks import file_lock, is_locked

LIMIT = 4 * 1024**3
"""Default size limit of a cache, in bytes."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RejectedEngine:
    """An engine that TensorRT did not load, and the reason."""

    engine: bytes
    reason: str


@dataclass(frozen=True)
class Entry:
    """One engine of the cache, as its record describes it."""

    digest: str
    label: str
    parts: dict[str, str]
    size: int
    last_used: float
    """Seconds since 1970."""
    building: bool
    """True while a process builds it."""


PARTIAL = r"(\.[\w.-]+\.partial)?"
ENGINE_FILE = re.compile(r"\.?([0-9a-f]{32})\.(engine|json|lock)" + PARTIAL)
"""File names of an engine; the first group is the digest of its key."""
MEASUREMENT_FILE = re.compile(r"\.?tensorrt.*\.(timing|kernels)" + PARTIAL)
"""File names of what TensorRT measured or compiled while it built or loaded engines."""


class EngineCache:
    """Engines by key, in `folder`/engines. Engines that were read or built here are removed by `clear` only."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT) -> None:
        self.folder, self.limit_bytes = folder / "engines", limit_bytes
        self._in_use: set[str] = set()
        self._limit_reported = False

    def get(self, key: EngineKey) -> bytes | None:
        """Return the engine, or None if it is absent or damaged."""
        return self._read(key)[0]

    def build_once(
        self,
        key: EngineKey,
        build: Callable[[], bytes],
        log: Callable[[str], None],
        expected_bytes: int = 0,
        rejected: RejectedEngine | None = None,
    ) -> bytes:
        """Return the engine from the cache, or build and store it while other processes that need it wait.

        Args:
            key: key of the engine.
            build: builds the engine.
            log: receives one line each time that an engine is built, waited for or removed.
            expected_bytes: disk space that must be free before the build.
            rejected: a cached engine that TensorRT did not load, which is replaced.

        Raises:
            InputError: the folder cannot be written, or the disk is full. No partial engine remains.
        """
        engine, _ = self._read(key, rejected)
        if engine is not None:
            return engine
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(
                self._path(key.digest, "lock"),
                on_wait=lambda: log(f"{key.label}: waiting for another process that builds it"),
            ):
                engine, fault = self._read(key, rejected)
                if engine is not None:
                    return engine
                log(f"{key.label}: building the engine ({fault or self._difference(key)})")
                self._check_space(expected_bytes)
                try:
                    engine = build()
                except OSError as error:
                    raise InputError(f"{key.label} cannot be built: {error}") from error
                self._write(key, engine)
        except OSError as error:
            todo = "free some space, or choose another folder" if error.errno in DISK_FULL else "choose another folder"
            raise InputError(
                f"{self.folder} cannot keep an engine: {error.strerror or error}; {todo} with --cache-dir"
            ) from error
        self._enforce_limit(log)
        return engine

    def entries(self) -> list[Entry]:
        """Return all entries, least recently used first. A damaged or missing record is the entry's label.

        Raises:
            InputError: the folder cannot be read.
        """
        entries = [self._entry(digest, files) for digest, files in self._files().items()]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.last_used)

    def clear(self) -> tuple[list[Entry], list[OSError]]:
        """Remove every engine that no process is building, leftovers of killed builds, and measurements.

        Returns:
            The removed entries, and the errors of what remains: a BlockingIOError for an engine that is being built.

        Raises:
            InputError: the folder cannot be read.
        """
        removed, faults = [], []
        for digest, files in self._files().items():
            entry, fault = self._entry(digest, files), self._remove(digest)
            if fault is not None:
                faults.append(fault)
            elif entry is not None:
                removed.append(entry)
        for path in self.folder.glob("*"):
            if MEASUREMENT_FILE.fullmatch(path.name):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    faults.append(error)
        return removed, faults

    def _files(self) -> dict[str, list[Path]]:
        """Return the files of each engine, by digest. Files with other names belong to other programs."""
        files: dict[str, list[Path]] = {}
        try:
            for path in self.folder.iterdir():
                if match := ENGINE_FILE.fullmatch(path.name):
                    files.setdefault(match[1], []).append(path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be read: {error.strerror}; choose another folder with --cache-dir"
            ) from error
        return files

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / f"{digest}.{suffix}"

    def _read(self, key: EngineKey, rejected: RejectedEngine | None = None) -> tuple[bytes | None, str]:
        """Return the engine, or None and the fault of the entry, which is empty if there is no entry."""
        record_path = self._path(key.digest, "json")
        try:
            record = json.loads(record_path.read_text(encoding="utf-8"))
            parts, sha256 = record["parts"], record["sha256"]
            engine = self._path(key.digest, "engine").read_bytes()
        except OSError as error:
            absent = isinstance(error, FileNotFoundError) and error.filename == str(record_path)
            return None, "" if absent else f"the cached engine cannot be read: {error.strerror}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, "the record of the cached engine is damaged"
        if parts != key.parts():
            return None, "the record of the cached engine belongs to another engine"
        if hashlib.sha256(engine).hexdigest() != sha256:
            return None, "the cached engine was changed: its sha256 is not the record's"
        if rejected is not None and engine == rejected.engine:
            return None, rejected.reason
        with contextlib.suppress(OSError):  # a read-only cache is usable
            os.utime(record_path)
        self._in_use.add(key.digest)
        return engine, ""

    def _difference(self, key: EngineKey) -> str:
        """Return the changes since the most similar engine with the same label."""
        same_label = [entry.parts for entry in reversed(self.entries()) if entry.label == key.label]
        changes = sorted((key.changes(parts) for parts in same_label), key=len)
        return "; ".join(changes[0] if changes else []) or "there is none yet"

    def _entry(self, digest: str, files: list[Path]) -> Entry | None:
        """Return the entry, or None if its only file is a lock that no process holds."""
        lock, record_path = self._path(digest, "lock"), self._path(digest, "json")
        building = lock in files and is_locked(lock)
        times, size = {}, 0
        for path in files:
            with contextlib.suppress(OSError):  # another process removed it
                status = path.stat()
                times[path], size = status.st_mtime, size + status.st_size
        if not times or (set(times) == {lock} and not building):
            return None
        last_used = times.get(record_path, max(times.values()))
        if record_path in times:
            label, parts = _read_record(record_path)
        else:
            label, parts = "being built" if building else "left by an interrupted build", {}
        return Entry(digest, label, parts, size, last_used, building)

    def _check_space(self, expected_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < expected_bytes:
            free_mb, expected_mb = free / 1e6, expected_bytes / 1e6
            raise OSError(errno.ENOSPC, f"{free_mb:.0f} MB are free, the engine needs about {expected_mb:.0f} MB")

    def _write(self, key: EngineKey, engine: bytes) -> None:
        engine_path, record_path = self._path(key.digest, "engine"), self._path(key.digest, "json")
        sha256 = hashlib.sha256(engine).hexdigest()
        record = {"what": key.label, "parts": key.parts(), "size": len(engine), "sha256": sha256}
        try:
            record_path.unlink(missing_ok=True)
            self._remove_partial(key.digest)
            write_bytes(engine_path, engine)
            write_bytes(record_path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        except OSError:
            with contextlib.suppress(OSError):
                engine_path.unlink(missing_ok=True)
            raise
        self._in_use.add(key.digest)

    def _enforce_limit(self, log: Callable[[str], None]) -> None:
        """Remove the least recently used engines until the rest fits. Engines in use here remain."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total > self.limit_bytes and entry.digest not in self._in_use and self._remove(entry.digest) is None:
                total -= entry.size
                log(f"{entry.label}: removed from the cache, whose limit is {self.limit_bytes / 1e6:.0f} MB")
        needed = sum(entry.size for entry in entries if entry.digest in self._in_use)
        if needed > self.limit_bytes and not self._limit_reported:
            self._limit_reported = True
            log(
                f"these engines need at least {-(-needed // 1024**2)} MB, cache_mb is {self.limit_bytes // 1024**2}: "
                f"they remain, and every other engine is removed; increase cache_mb"
            )

    def _remove(self, digest: str) -> OSError | None:
        """Remove an entry. Return the error if it remains, a BlockingIOError if a process is building it."""
        try:
            with file_lock(self._path(digest, "lock"), blocking=False):
                for suffix in ("json", "engine"):
                    self._path(digest, suffix).unlink(missing_ok=True)
                self._remove_partial(digest)
        except OSError as error:
            return error
        return None

    def _remove_partial(self, digest: str) -> None:
        """Remove the files of a process that was killed while it wrote."""
        for path in self.folder.glob(f".{digest}.*.partial"):
            path.unlink(missing_ok=True)


def _read_record(path: Path) -> tuple[str, dict[str, str]]:
    """Return label and parts of an entry, if they are printable."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        label, parts = record["what"], dict(record["parts"])
        if all(isinstance(text, str) and text.isprintable() for text in (label, *parts, *parts.values())):
            return label, parts
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return "a damaged record", {}


def cache_folder(chosen: Path | None) -> Path:
    """Return the chosen folder, or else `edge-attn` in the user's cache folder.

    Raises:
        InputError: the chosen path is a file or cannot be a folder, or the user has no home folder.
    """
    if chosen is not None:
        try:
            mode = chosen.stat().st_mode
        except FileNotFoundError:
            return chosen
        except OSError as error:
            raise InputError(f"--cache-dir {chosen} cannot be used: {error.strerror}; choose another folder") from error
        if not stat.S_ISDIR(mode):
            raise InputError(f"--cache-dir must be a folder, got the file {chosen}")
        return chosen
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "edge-attn"
    except RuntimeError as error:
        raise InputError("this user has no home folder for engines; use --cache-dir or set XDG_CACHE_HOME") from error
