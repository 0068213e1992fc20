"""Engines on disk: built once on the machine that runs them, never in a bundle.

    <folder>/engines/<key>.engine    the engine
    <folder>/engines/<key>.json      what it was built from, its sha256 and size; written last
    <folder>/engines/<key>.lock      there while one process builds it and others wait

The key is a hash of all that an engine depends on, so an engine of another GPU, version or graph is never found. An
entry is two files renamed into place under a lock: a build that is killed leaves none. The entries used longest ago go
when the folder outgrows its limit, but none that is in use here.
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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import InputError
from edge_attn.storage.locks import file_lock, is_locked

LIMIT = 4 * 1024**3
"""Bytes of engines kept."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAMES = {
    "graph": "the graph",
    "runtime": "TensorRT",
    "gpu": "the GPU",
    "compute_capability": "the compute capability",
    "precision": "the precision",
    "profiles": "the profiles",
    "plugins": "the plugins",
    "settings": "the build's settings",
}
"""The parts of a key, as a reason names them."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on, in words that a person can read."""

    what: str
    """For people: the bundle, the graph, the target. Not part of the hash."""
    graph: str
    """sha256 of the ONNX file."""
    runtime: str
    """As `tensorrt 10.3.0`."""
    gpu: str
    compute_capability: str
    precision: str
    profiles: str
    plugins: str
    """Each plugin with the hash of its kernel, or `none`."""
    settings: str

    def parts(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in NAMES}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RejectedEngine:
    """An engine that TensorRT did not take, and its reason."""

    engine: bytes
    reason: str


@dataclass(frozen=True)
class Entry:
    """One engine of the cache, as its record says."""

    digest: str
    what: str
    parts: dict[str, str]
    size: int
    used: float
    """When it was last used, in seconds since 1970."""
    building: bool
    """Now, by a process."""

    def __str__(self) -> str:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        built = "  ".join(self.parts.get(name, "?") for name in ("runtime", "gpu", "precision"))
        return f"{self.size / 1e6:8.1f} MB  last used {used}  {self.what}  {built}  {self.digest}"


@dataclass(frozen=True)
class Cleared:
    """What became of the entries of a cache."""

    removed: list[Entry]
    building: int
    """How many are left because a process builds them."""
    faults: list[OSError]
    """Why the others are left."""


OURS = re.compile(r"\.?([0-9a-f]{32})\.(engine|json|lock)(\.\d+\.partial)?")
"""The names of an engine's files, by its key's digest."""
MEASURED = re.compile(r"\.?tensorrt.*\.(timing|kernels)(\.\d+\.partial)?")
"""The names of what TensorRT learnt while it built or started engines."""


class EngineCache:
    """Engines by their keys, in `folder`/engines. What it has given or made, it removes only when it is cleared."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT) -> None:
        self.folder, self.limit_bytes = folder / "engines", limit_bytes
        self._in_use: set[str] = set()
        self._has_outgrown = False

    def get(self, key: EngineKey) -> bytes | None:
        """The engine, whole and unchanged, or None."""
        return self._read(key)[0]

    def build_once(
        self,
        key: EngineKey,
        make: Callable[[], bytes],
        say: Callable[[str], None],
        expected: int = 0,
        refused: RejectedEngine | None = None,
    ) -> bytes:
        """The engine; made here if it is not there, while every other process that wants it waits for this one.

        `say` is told why an engine is built and that one waits; `expected` bytes must be free on the disk first. An
        engine that was `refused` counts as none.

        Raises:
            InputError: the folder cannot be written, or the disk is full; nothing half-written is left.
        """
        engine, _ = self._read(key, refused)
        if engine is not None:
            return engine
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(
                self._lock(key.digest), on_wait=lambda: say(f"{key.what}: waiting for another process that builds it")
            ):
                engine, reason = self._read(key, refused)
                if engine is not None:
                    return engine
                say(f"{key.what}: building the engine ({reason or self._difference(key)})")
                self._check_space(expected)
                try:
                    engine = make()
                except OSError as error:
                    raise InputError(f"{key.what} cannot be built: {error}") from error
                self._write(key, engine)
        except OSError as error:
            raise _sentence(self.folder, error) from error
        self._make_room(say)
        return engine

    def entries(self) -> list[Entry]:
        """What is there, the one used longest ago first; a damaged record, or none, is said in the place of a name.

        Raises:
            InputError: the folder cannot be read.
        """
        found = [self._entry(digest, files) for digest, files in self._files().items()]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)

    def clear(self) -> Cleared:
        """Removes every engine that nobody is building, what builds that were killed left, and what they measured.

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
        for name in filter(MEASURED.fullmatch, self._names()):
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                faults.append(error)
        left = [fault for fault in faults if not isinstance(fault, BlockingIOError)]
        return Cleared(removed, len(faults) - len(left), left)

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be read: {error.strerror}; choose another folder with --cache-dir"
            ) from error

    def _files(self) -> dict[str, list[Path]]:
        """Files that are named as an engine's are, by digest; others in the folder are somebody else's."""
        found: dict[str, list[Path]] = {}
        for name in self._names():
            if ours := OURS.fullmatch(name):
                found.setdefault(ours[1], []).append(self.folder / name)
        return found

    def _lock(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"

    def _paths(self, digest: str) -> tuple[Path, Path]:
        return self.folder / f"{digest}.engine", self.folder / f"{digest}.json"

    def _read(self, key: EngineKey, refused: RejectedEngine | None = None) -> tuple[bytes | None, str]:
        """The engine, or None and what is wrong with the entry; the reason is empty if there is none."""
        engine_path, record_path = self._paths(key.digest)
        try:
            text = record_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None, ""
        except (OSError, UnicodeDecodeError) as error:
            return None, f"the record of the cached engine cannot be read: {error}"
        try:
            record = json.loads(text)
            parts, size, sha256 = record["parts"], record["size"], record["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, "the record of the cached engine is damaged"
        if parts != key.parts():
            return None, "the record of the cached engine is of another one"
        try:
            engine = engine_path.read_bytes()
        except OSError as error:
            return None, f"the cached engine cannot be read: {error.strerror}"
        if len(engine) != size:
            return None, f"the cached engine has {len(engine)} bytes, expected {size}"
        if hashlib.sha256(engine).hexdigest() != sha256:
            return None, "the cached engine was changed: its sha256 is not the record's"
        if refused is not None and engine == refused.engine:
            return None, refused.reason
        with contextlib.suppress(OSError):  # a cache that may only be read is still a cache
            os.utime(record_path)
        self._in_use.add(key.digest)
        return engine, ""

    def _difference(self, key: EngineKey) -> str:
        """Why the nearest other engine for the same thing does not serve."""
        others = [entry for entry in self.entries() if entry.what == key.what]
        if not others:
            return "there is none yet"
        parts = key.parts()
        apart = [{name for name in parts if entry.parts.get(name) != parts[name]} for entry in others]
        nearest = min(range(len(others)), key=lambda i: (len(apart[i]), -others[i].used))
        changes = [
            f"{NAMES[name]} was {others[nearest].parts.get(name)}, is {parts[name]}"
            if name in ("runtime", "gpu", "compute_capability", "precision")
            else f"{NAMES[name]} changed"
            for name in parts
            if name in apart[nearest]
        ]
        return "; ".join(changes) or "the cached engine's name is not its key's"

    def _entry(self, digest: str, files: list[Path]) -> Entry | None:
        """None if nothing is there but a lock that nobody holds."""
        lock, record_path = self._lock(digest), self._paths(digest)[1]
        building = lock in files and is_locked(lock)
        times, size = {}, 0
        for path in files:
            with contextlib.suppress(OSError):  # removed meanwhile
                found = path.stat()
                times[path], size = found.st_mtime, size + found.st_size
        if not times or (set(times) == {lock} and not building):
            return None
        used = times.get(record_path, max(times.values()))
        if record_path in times:
            what, parts = _record(record_path)
        else:
            what, parts = "being built" if building else "left by a build that was ended", {}
        return Entry(digest, what, parts, size, used, building)

    def _check_space(self, expected: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < expected:
            raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB are free, the engine needs about {expected / 1e6:.0f} MB")

    def _write(self, key: EngineKey, engine: bytes) -> None:
        engine_path, record_path = self._paths(key.digest)
        record = {
            "what": key.what,
            "parts": key.parts(),
            "size": len(engine),
            "sha256": hashlib.sha256(engine).hexdigest(),
        }
        try:
            record_path.unlink(missing_ok=True)
            self._sweep(key.digest)
            write_whole(engine_path, engine)
            write_whole(record_path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        except OSError:
            with contextlib.suppress(OSError):
                engine_path.unlink(missing_ok=True)
            raise
        self._in_use.add(key.digest)

    def _make_room(self, say: Callable[[str], None]) -> None:
        """Removes what was used longest ago, for the rest to fit; nothing that is in use here."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total > self.limit_bytes and entry.digest not in self._in_use and self._remove(entry.digest) is None:
                total -= entry.size
                say(f"{entry.what}: removed from the cache, which holds {self.limit_bytes / 1e6:.0f} MB")
        needed = sum(entry.size for entry in entries if entry.digest in self._in_use)
        if needed > self.limit_bytes and not self._has_outgrown:
            self._has_outgrown = True
            say(
                f"these engines need at least {-(-needed // 1024**2)} MB, cache_mb is {self.limit_bytes // 1024**2}: "
                f"they are kept, and every other engine goes; give more to cache_mb"
            )

    def _remove(self, digest: str) -> OSError | None:
        """Why it is still there: a BlockingIOError if it is being built."""
        engine_path, record_path = self._paths(digest)
        try:
            with file_lock(self._lock(digest), blocking=False):
                record_path.unlink(missing_ok=True)
                engine_path.unlink(missing_ok=True)
                self._sweep(digest)
        except OSError as error:
            return error
        return None

    def _sweep(self, digest: str) -> None:
        """Removes what a process left that was killed while it wrote."""
        for path in self.folder.glob(f".{digest}.*.partial"):
            path.unlink(missing_ok=True)


def _record(path: Path) -> tuple[str, dict[str, str]]:
    """What an entry is for, and of which parts, as far as a person can read it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        what, parts = record["what"], dict(record["parts"])
        if all(isinstance(text, str) and text.isprintable() for text in (what, *parts, *parts.values())):
            return what, parts
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return "a damaged record", {}


def write_whole(path: Path, data: bytes) -> None:
    """`data` at `path`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sentence(folder: Path, error: OSError) -> InputError:
    todo = "free some space, or choose another folder" if error.errno in FULL else "choose another folder"
    return InputError(f"{folder} cannot keep an engine: {error.strerror or error}; {todo} with --cache-dir")


def cache_folder(chosen: Path | None) -> Path:
    """The folder that was chosen, or edge-attn in the user's cache.

    Raises:
        InputError: what was chosen is a file, or no folder can have its name; nothing was chosen, and nobody knows
            where this user's folders are.
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
        raise InputError(
            "this user has no home folder to keep engines in; give --cache-dir or set XDG_CACHE_HOME"
        ) from error
