"""Files that a user names for the output of a command: translations, reports, pictures.

Parent folders are created. The file appears when it is complete. A bundle or a checkpoint is never overwritten.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from edge_attn.bundle.archive import is_zip_with
from edge_attn.bundle.manifest import MANIFEST
from edge_attn.errors import InputError
from edge_attn.storage.atomic import replacement

CHECKPOINT = ("config.json", "model.safetensors", "training.safetensors", "MODEL_CARD.md", "text")
"""Files and folders of a checkpoint."""


def is_stream(path: Path) -> bool:
    """Return whether `path` is a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_output_file(path: Path) -> None:
    """Check that an output file can be written, and create its parent folders. Callers check before long work.

    Raises:
        InputError: it cannot, or it would overwrite a bundle, a checkpoint or a file of one.
    """
    with output_errors(path):
        if is_stream(path):
            return
        real_path = path.resolve()
        _refuse_model(path, real_path)
        real_path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_written_in_place(real_path):
            with tempfile.TemporaryFile(dir=real_path.parent):
                pass


@contextlib.contextmanager
def open_output_file(path: Path) -> Iterator[TextIO]:
    """Open an output file. It appears when the block ends without an error; a pipe or a device is written at once.

    Raises:
        InputError: it cannot be written, or is a bundle, a checkpoint or a file of one.
    """
    check_output_file(path)
    with contextlib.ExitStack() as stack:
        with output_errors(path):
            target = path.resolve()  # the file that a link points to is replaced, and the link stays
            if not is_stream(path) and not _is_written_in_place(target):
                target = stack.enter_context(replacement(target))
            file = stack.enter_context(target.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"))
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        with output_errors(path):
            stack.close()


def write_output_file(path: Path, text: str) -> None:
    """Write an output file.

    Raises:
        InputError: it cannot be written, or is a bundle, a checkpoint or a file of one.
    """
    with open_output_file(path) as file, output_errors(path):
        file.write(text)


@contextlib.contextmanager
def output_errors(path: Path | None) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file, except a broken pipe, whose reader needs no more.

    Raises:
        InputError: the block raised an OSError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path or 'standard output'} cannot be written: {reason}") from error


def _is_written_in_place(path: Path) -> bool:
    """Return whether a file can be written although its folder cannot, as a file that is mounted into a container."""
    return path.is_file() and os.access(path, os.W_OK) and not os.access(path.parent, os.W_OK | os.X_OK)


def _refuse_model(path: Path, real_path: Path) -> None:
    """Check that an output file is no bundle or checkpoint, and is not inside of one.

    Raises:
        InputError: it is.
    """
    if real_path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder; give the name of a file")
    if is_zip_with(real_path, MANIFEST):
        raise InputError(f"{path} is a bundle, and is not overwritten; write the output to another file")
    for folder in list(real_path.parents)[:3]:
        if (folder / MANIFEST).is_file() and (folder / "graphs").is_dir():
            raise InputError(f"{path} is inside of the bundle {folder}; write the output to another folder")
        name = real_path.relative_to(folder).parts[0]
        if name in CHECKPOINT and all((folder / file).is_file() for file in CHECKPOINT[:2]):
            raise InputError(f"{path} is a file of the checkpoint {folder}; write the output to another file")
