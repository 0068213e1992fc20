"""Engines on disk: built once on the machine that runs them, never in a bundle.

    <folder>/engines/<key>.engine    the engine
    <folder>/engines/<key>.json      what it was built from, its sha256 and size; written last
    <folder>/engines/<key>.lock      there while one process builds it and others wait

The key is a hash of all that an engine depends on, so an engine of another GPU, version or graph is never found. An
entry is two files renamed into place under a lock: a build that is killed leaves none. The entries used longest ago go
when the folder outgrows its limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import InputError

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
class Refused:
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

    def __str__(self) -> str:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        built = "  ".join(self.parts.get(name, "?") for name in ("runtime", "gpu", "precision"))
        return f"{self.size / 1e6:8.1f} MB  last used {used}  {self.what}  {built}  {self.digest}"


OURS = re.compile(r"\.?[0-9a-f]{32}\.")
"""How the names of an engine's files begin: with its key's digest."""


class EngineCache:
    """Engines by their keys, in `folder`/engines."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT) -> None:
        self.folder, self.limit_bytes = folder / "engines", limit_bytes

    def get(self, key: EngineKey) -> bytes | None:
        """The engine, whole and unchanged, or None."""
        return self._read(key)[0]

    def build_once(
        self,
        key: EngineKey,
        make: Callable[[], bytes],
        say: Callable[[str], None],
        expected: int = 0,
        refused: Refused | None = None,
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
            with self._locked(key.digest, lambda: say(f"{key.what}: waiting for another process that builds it")):
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
        for entry in self._surplus(key.digest):
            if self._remove(entry.digest):
                say(f"{entry.what}: removed from the cache, which holds {self.limit_bytes / 1e6:.0f} MB")
        return engine

    def entries(self) -> list[Entry]:
        """What is there, the one used longest ago first; a damaged record has no name."""
        found = [self._entry(path) for path in self._ours(".json")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)

    def clear(self) -> tuple[int, int]:
        """Removes every engine that nobody is building. Gives how many, and their bytes."""
        removed = [entry for entry in self.entries() if self._remove(entry.digest)]
        for path in [*self._ours(".engine"), *self._ours(".partial")]:  # of builds that were killed
            self._remove(path.name.lstrip(".").partition(".")[0])
        return len(removed), sum(entry.size for entry in removed)

    def _ours(self, suffix: str) -> list[Path]:
        """Files that are named as an engine's are; others in the folder are somebody else's."""
        return [path for path in self.folder.glob(f"*{suffix}") if OURS.match(path.name)]

    def _paths(self, digest: str) -> tuple[Path, Path]:
        return self.folder / f"{digest}.engine", self.folder / f"{digest}.json"

    def _read(self, key: EngineKey, refused: Refused | None = None) -> tuple[bytes | None, str]:
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

    def _entry(self, path: Path) -> Entry | None:
        try:
            used = path.stat().st_mtime
            engine = self._paths(path.stem)[0]
            size = path.stat().st_size + (engine.stat().st_size if engine.exists() else 0)
        except OSError:  # removed meanwhile
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Entry(path.stem, str(record["what"]), dict(record["parts"]), size, used)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return Entry(path.stem, "a damaged record", {}, size, used)

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

    def _surplus(self, keep: str) -> list[Entry]:
        """What must go for the rest to fit."""
        entries = self.entries()
        total, surplus = sum(entry.size for entry in entries), []
        for entry in entries:
            if total > self.limit_bytes and entry.digest != keep:
                surplus.append(entry)
                total -= entry.size
        return surplus

    def _remove(self, digest: str) -> bool:
        """False if it is being built, or cannot be removed."""
        engine_path, record_path = self._paths(digest)
        try:
            with self._locked(digest, None):
                record_path.unlink(missing_ok=True)
                engine_path.unlink(missing_ok=True)
                self._sweep(digest)
        except OSError:
            return False
        return True

    def _sweep(self, digest: str) -> None:
        """Removes what a process left that was killed while it wrote."""
        for path in self.folder.glob(f".{digest}.*.partial"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, digest: str, waits: Callable[[], None] | None) -> Iterator[None]:
        """Alone with one entry. `waits` is called if another process is there first; None: then it is an OSError."""
        path = self.folder / f"{digest}.lock"
        with contextlib.ExitStack() as stack:
            while True:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                closing = stack.enter_context(contextlib.ExitStack())
                closing.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if waits is None:
                        raise
                    waits()
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if _is_still(path, handle):
                    break
                closing.close()  # whoever held it has removed it, so somebody else may hold a newer one
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


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
        InputError: what was chosen is a file.
    """
    if chosen is not None:
        if chosen.exists() and not chosen.is_dir():
            raise InputError(f"--cache-dir must be a folder, found the file {chosen}")
        return chosen
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "edge-attn"


def _engines(count: int) -> str:
    return f"{count} engine{'' if count == 1 else 's'}"


def list_cache(cache_dir: Path | None = None) -> str:
    """What `edge-attn cache list` prints: a line an engine, the one used longest ago first."""
    cache = EngineCache(cache_folder(cache_dir))
    entries = cache.entries()
    total = sum(entry.size for entry in entries) / 1e6
    return "\n".join([*map(str, entries), f"{cache.folder}: {_engines(len(entries))}, {total:.1f} MB"])


def clear_cache(cache_dir: Path | None = None) -> str:
    """What `edge-attn cache clear` prints, after it has removed every engine and what their builds measured."""
    cache = EngineCache(cache_folder(cache_dir))
    count, size = cache.clear()
    for path in cache.folder.glob("tensorrt*.timing"):
        with contextlib.suppress(OSError):
            path.unlink()
    left = cache.entries()
    also = f"; {len(left)} are being built, or cannot be removed" if left else ""
    return f"{cache.folder}: removed {_engines(count)}, {size / 1e6:.1f} MB{also}"
