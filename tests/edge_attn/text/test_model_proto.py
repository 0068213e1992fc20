"""A damaged SentencePiece model is refused before the library reads it, and each sound one is read."""

from __future__ import annotations

import contextlib
import io
import random
import struct

import pytest
import sentencepiece

from edge_attn.errors import InputError
from edge_attn.text.model_proto import CHARSMAP, NORMALIZER, PIECES, _fields, check_model

LINES = ["the cat sat on the mat", "a dog ran to the cat", "the mat was red", "\u00e9lan"] * 10


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    size = 15 if options.get("model_type") == "word" else 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


MODEL = trained()


def varint(value: int) -> bytes:
    """Return the bytes of an integer in a protocol buffer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def with_field(message: bytes, number: int, change) -> bytes:
    """Return a message whose first field of this number, a text or a message, is `change(value)`."""
    encoded, done = b"", False
    for field, kind, value in _fields(message):
        if field == number and not done:
            value, done = change(value), True
        content = varint(value) if isinstance(value, int) else varint(len(value)) + value if kind == 2 else value
        encoded += varint(field << 3 | kind) + content
    assert done
    return encoded


def with_charsmap(change) -> bytes:
    return with_field(MODEL, NORMALIZER, lambda message: with_field(message, CHARSMAP, change))


def units_of(charsmap: bytes) -> tuple[list[int], bytes]:
    (size,) = struct.unpack("<I", charsmap[:4])
    return list(struct.unpack(f"<{size // 4}I", charsmap[4 : 4 + size])), charsmap[4 + size :]


def with_units(change) -> bytes:
    def changed(charsmap: bytes) -> bytes:
        units, replacements = units_of(charsmap)
        change(units)
        return charsmap[:4] + struct.pack(f"<{len(units)}I", *units) + replacements

    return with_charsmap(changed)


def first_leaf(units: list[int]) -> int:
    return next(i for i, unit in enumerate(units) if unit >> 31)


def point_into_mid_text(units: list[int]) -> None:
    leaves = [unit & 0x7FFFFFFF for unit in units if unit >> 31]
    units[first_leaf(units)] = 1 << 31 | next(start + 1 for start in leaves if start + 1 not in leaves)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "char"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"])
def test_sound_models_are_read(kind, rule):
    check_model(trained(model_type=kind, normalization_rule_name=rule), "the model")


def test_model_with_rules_of_its_own_is_read(tmp_path):
    (tmp_path / "rules.tsv").write_text("41\t61 62\nC0\t41\n")
    check_model(trained(normalization_rule_tsv=str(tmp_path / "rules.tsv")), "the model")


def test_encoding_of_fields_is_exact():
    assert with_charsmap(lambda charsmap: charsmap) == MODEL
    assert with_field(MODEL, PIECES, lambda piece: piece) == MODEL


DAMAGE = {
    "nothing": lambda: b"\x0f",
    "cut": lambda: MODEL[:-3],
    "size": lambda: b"\x0a\xff\xff\xff\xff\x7f",
    "endless integer": lambda: b"\xff" * 20,
    "empty piece": lambda: with_field(MODEL, PIECES, lambda piece: with_field(piece, 1, lambda _: b"")),
    "piece not UTF-8": lambda: with_field(MODEL, PIECES, lambda piece: with_field(piece, 1, lambda _: b"\xff")),
    "long piece": lambda: with_field(MODEL, PIECES, lambda piece: with_field(piece, 1, lambda _: b"a" * 5000)),
    "type of a piece": lambda: with_field(MODEL, PIECES, lambda piece: piece + b"\x18\x09"),
    "map without an end": lambda: with_charsmap(lambda charsmap: charsmap[:-1] + b"a"),
    "map of one long text": lambda: with_charsmap(lambda charsmap: charsmap.replace(b"\0", b"a")),
    "replacement not UTF-8": lambda: with_charsmap(lambda charsmap: charsmap[:-2] + b"\xff\0"),
    "size of the map": lambda: with_charsmap(lambda charsmap: b"\xff\xff\xff\x7f" + charsmap[4:]),
    "no map": lambda: with_charsmap(lambda _: b"ab"),
    "walk outside": lambda: with_units(lambda units: units.__setitem__(0, 0x7FFFFC00)),
    "value outside": lambda: with_units(lambda units: units.__setitem__(first_leaf(units), 0xFFFFFFFF)),
    "value in mid-text": lambda: with_units(point_into_mid_text),
}
DAMAGE |= {
    f"score {score}": lambda score=score: with_field(
        MODEL, PIECES, lambda piece: with_field(piece, 2, lambda _: struct.pack("<f", score))
    )
    for score in (float("nan"), float("inf"), float("-inf"), 1e38)
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_damaged_model_is_refused(damage):
    with pytest.raises(InputError, match=r"text/source\.model is not a SentencePiece model, or is damaged"):
        check_model(DAMAGE[damage](), "text/source.model")


def test_changed_bytes_raise_no_other_error():
    """What is read may differ; `verify` compares it."""
    generator = random.Random(3)
    for _ in range(60):
        data = bytearray(MODEL)
        for _ in range(generator.choice([1, 5, 50])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        with contextlib.suppress(InputError):
            check_model(bytes(data), "the model")
