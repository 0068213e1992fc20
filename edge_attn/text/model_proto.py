"""Check of a SentencePiece model before the library reads it, which a damaged one can stop or crash.

A model is a protocol buffer (sentencepiece_model.proto): the pieces with their scores, and a normalization map, which
is a double array (darts-clone) followed by the replacements, each with a NUL at its end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from edge_attn.errors import InputError

PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
"""Fields of the model."""
PIECE, SCORE, TYPE = 1, 2, 3
"""Fields of a piece."""
CHARSMAP, MODEL_TYPE = 2, 3
"""Fields of the normalizer and of the trainer."""
PIECE_TYPES, MODEL_TYPES = range(1, 7), range(1, 5)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LONGEST_PIECE = 1024
"""Maximum size of a piece in bytes."""
LONGEST_REPLACEMENT = 256
"""Maximum size of a replacement in bytes. The longest of NFKC has 33."""
LARGEST_SCORE = 1e7
"""Maximum absolute score: a log-probability, or the rank of a merge."""

Field = tuple[int, int, int | bytes]


def check_model(data: bytes, name: str) -> None:
    """Check that the pieces, the scores and the normalization maps of a model are sound.

    Args:
        data: the content of the model's file.
        name: its name in error messages.

    Raises:
        InputError: it is not a SentencePiece model, or is damaged.
    """
    try:
        for number, kind, value in _fields(data):
            if kind != BYTES:
                continue
            assert isinstance(value, bytes)
            if number == PIECES:
                _check_piece(value)
            elif number == TRAINER:
                _check_trainer(value)
            elif number in (NORMALIZER, DENORMALIZER):
                for inner, inner_kind, charsmap in _fields(value):
                    if (inner, inner_kind) == (CHARSMAP, BYTES):
                        assert isinstance(charsmap, bytes)
                        _check_charsmap(charsmap)
    except (ValueError, struct.error, IndexError) as error:
        raise InputError(f"{name} is not a SentencePiece model, or is damaged: {error}") from error


def _fields(data: bytes) -> Iterator[Field]:
    """Yield number, wire type and value of each field of a message.

    Raises:
        ValueError: the message is not well formed.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            integer, position = _varint(data, position)
            yield number, kind, integer
            continue
        if kind == BYTES:
            size, position = _varint(data, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if size > end - position:
            raise ValueError(f"a field of {size} bytes, {end - position} are left")
        yield number, kind, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the integer at `position`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer of more than ten bytes")


def _check_piece(message: bytes) -> None:
    for number, kind, value in _fields(message):
        if (number, kind) == (PIECE, BYTES):
            assert isinstance(value, bytes)
            if not 0 < len(value) <= LONGEST_PIECE:
                raise ValueError(f"a piece of {len(value)} bytes")
            value.decode()
        elif (number, kind) == (SCORE, FIXED32):
            assert isinstance(value, bytes)
            (score,) = struct.unpack("<f", value)
            if not math.isfinite(score) or abs(score) > LARGEST_SCORE:
                raise ValueError(f"a piece with the score {score}")
        elif number == TYPE and value not in PIECE_TYPES:
            raise ValueError(f"a piece of type {value!r}")
        elif number in (PIECE, SCORE):
            raise ValueError(f"a piece whose field {number} has wire type {kind}")


def _check_trainer(message: bytes) -> None:
    for number, _, value in _fields(message):
        if number == MODEL_TYPE and value not in MODEL_TYPES:
            raise ValueError(f"a model of type {value!r}")


def _check_charsmap(charsmap: bytes) -> None:
    """Check that no walk through the double array leaves it, and that each replacement is a short text.

    A unit has a label (its lowest byte), a flag of a leaf below it (bit 8) and an offset to its children, which are at
    `unit ^ offset ^ label`; the leaf is the child of label 0, and its value the position of a replacement.
    """
    import numpy as np  # here, because `edge_attn --help` and the registry import the tokenizers without it

    if not charsmap:  # the identity
        return
    (size,) = struct.unpack("<I", charsmap[:4])
    if size % 1024 or not 0 < size <= len(charsmap) - 4:
        raise ValueError(f"a normalization map of {size} bytes in {len(charsmap)}")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    replacements = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    if not len(replacements) or replacements[-1]:
        raise ValueError("a normalization map without an end")
    ends = np.flatnonzero(replacements == 0)
    if np.diff(ends, prepend=-1).max() > LONGEST_REPLACEMENT:
        raise ValueError(f"a normalization map with a replacement of more than {LONGEST_REPLACEMENT} bytes")
    charsmap[4 + size :].decode()
    inner = units >> 31 == 0
    children = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))  # of label 0
    if (children[inner] | 0xFF).max(initial=0) >= len(units):
        raise ValueError("a normalization map that points outside of itself")
    leaves = units[children[inner & (units & 0x100 != 0)]]
    values = leaves & 0x7FFFFFFF
    starts = np.zeros(len(replacements) + 1, bool)
    starts[[0, *ends + 1]] = True
    if (leaves >> 31 == 0).any() or values.max(initial=0) >= len(replacements) or not starts[values].all():
        raise ValueError("a normalization map that points outside of its replacements")
