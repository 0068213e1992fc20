"""Tokenizers, which convert text to ids and back: SentencePiece pieces, words, or characters. Needs no torch.

Every vocabulary starts with the same four entries: 0 <pad>, 1 <unk>, 2 <s> (bos), 3 </s> (eos).
A source sequence is the ids of a sentence, then eos. A target sequence is bos, the ids of a sentence, eos.
"""

from __future__ import annotations

import abc
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.text.model_proto import check_model
from edge_attn.text.rules import TextRules

PAD, UNK, BOS, EOS = 0, 1, 2, 3
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character in UTF-16, which UTF-8 cannot encode."""

NO_RULES = TextRules()


class Tokenizer(Protocol):
    """Tokenizer of one side of a model, with its vocabulary."""

    suffix: str
    """Suffix of the vocabulary's file."""

    @property
    def rules(self) -> TextRules:
        """Return the rules that are applied to each text before it is encoded."""

    @classmethod
    def train(cls, lines: Iterable[str], size: int, config: TextConfig) -> Tokenizer:
        """Train a vocabulary of at most `size` entries on sentences.

        Args:
            lines: the sentences.
            size: maximum number of entries, whatever sizes `config` has.
            config: the other options.

        Raises:
            InputError: no such vocabulary can be trained on these sentences.
        """

    @classmethod
    def from_bytes(cls, data: bytes, name: str, rules: TextRules = NO_RULES) -> Tokenizer:
        """Load the vocabulary from the content of its file `name`, for texts under these rules.

        Raises:
            InputError: the file is damaged, or does not start with the four special entries.
        """

    def to_bytes(self) -> bytes:
        """Return the content of the vocabulary's file."""

    def __len__(self) -> int:
        """Return the size of the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without bos and eos."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the vocabulary entry of each id."""

    def entries(self) -> list[str]:
        """Return each entry of the vocabulary with everything that encoding reads of it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""

    def surface_forms(self, text: str) -> list[str]:
        """Return the part of the text that each id of `encode(text)` represents, also for unknown parts."""

    def join(self, pieces: Sequence[str]) -> str:
        """Return the text of pieces, as `decode` of their ids. Pieces outside the vocabulary are unchanged."""

    def spaced(self, pieces: Sequence[str], unknown: str = "\u2047") -> list[str]:
        """Return each piece with the white space that separates words around it, and without special symbols.

        Args:
            pieces: entries of the vocabulary.
            unknown: text of the unknown token where it is a part of words.
        """


class SentencePieceTokenizer:
    """Tokenizer of unigram pieces (Kudo 2018, https://arxiv.org/abs/1804.10959), from the sentencepiece library."""

    suffix = ".model"

    def __init__(self, data: bytes, name: str, rules: TextRules = NO_RULES) -> None:
        import sentencepiece

        self._data, self.rules = data, rules
        if not data:
            raise InputError(f"{name} is not a SentencePiece model: it is empty")
        check_model(data, name)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise InputError(f"{name} is not a SentencePiece model, or is damaged") from error
        special_ids = (self._model.pad_id(), self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if special_ids != (PAD, UNK, BOS, EOS):
            raise InputError(f"{name} has (pad, unk, bos, eos) = {special_ids}, expected {(PAD, UNK, BOS, EOS)}")

    @classmethod
    def train(cls, lines: Iterable[str], size: int, config: TextConfig) -> SentencePieceTokenizer:
        import sentencepiece

        rules = TextRules(case=config.case)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=map(rules.apply, lines),
                model_writer=model,
                vocab_size=size,
                model_type="unigram",
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                split_digits=config.split_digits,
                user_defined_symbols=list(dict.fromkeys(map(rules.apply, config.user_symbols))),
                normalization_rule_name=config.normal_form,
                hard_vocab_limit=False,
                num_threads=1,
                pad_id=PAD,
                unk_id=UNK,
                bos_id=BOS,
                eos_id=EOS,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or "the text is empty"
            hint = " (text.character_coverage)" if "character_coverage" in reason else ""
            raise InputError(
                f"no SentencePiece model of {size} entries can be trained on this text: {reason}{hint}"
            ) from error
        return cls(model.getvalue(), "the trained model", rules)

    @classmethod
    def from_bytes(cls, data: bytes, name: str, rules: TextRules = NO_RULES) -> SentencePieceTokenizer:
        return cls(data, name, rules)

    def to_bytes(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(self._readable(text)))

    def _readable(self, text: str) -> str:
        """Return the text under the rules, with halves of characters as replacement characters, for the library."""
        return SURROGATE.sub("\ufffd", self.rules.apply(text))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(self._model.id_to_piece(int(i))) for i in ids]

    def entries(self) -> list[str]:
        model = self._model
        kinds = (model.is_unknown, model.is_control, model.is_unused, model.is_byte)
        return [
            f"{model.id_to_piece(i)} {model.get_score(i)!r} {[bool(kind(i)) for kind in kinds]}"
            for i in range(len(self))
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode([int(i) for i in ids]))

    def surface_forms(self, text: str) -> list[str]:
        """Return the pieces of the text without the marker of a word's beginning, in the library's NFKC form.

        A piece that is only the marker is an empty string. Consecutive unknown characters are one piece. The last of
        the pieces that are the bytes of a character represents it, and the others are empty.
        """
        forms, pending = [], bytearray()
        for piece in self._model.encode(self._readable(text), out_type=str):
            if not self._model.is_byte(self._model.piece_to_id(piece)):
                forms.append(str(piece).replace("▁", " ").strip())
                continue
            pending.append(int(piece[3:5], 16))  # <0xE2>
            character = pending.decode(errors="ignore")
            forms.append(character.strip())
            if character:
                pending.clear()
        return forms

    def join(self, pieces: Sequence[str]) -> str:
        return str(self._model.decode_pieces(list(pieces)))

    def spaced(self, pieces: Sequence[str], unknown: str = "\u2047") -> list[str]:
        special = {SPECIAL[PAD]: "", SPECIAL[BOS]: "", SPECIAL[EOS]: "", SPECIAL[UNK]: unknown}
        return [special.get(piece, piece.replace("▁", " ")) for piece in pieces]


class _ListTokenizer(abc.ABC):
    """Tokenizer whose vocabulary is a list of entries. Subclasses define how a text is split and joined."""

    suffix = ".json"
    joiner: str
    """Text between two entries."""

    def __init__(self, entries: Sequence[str], name: str = "the vocabulary", rules: TextRules = NO_RULES) -> None:
        if tuple(entries[:4]) != SPECIAL or len(set(entries)) != len(entries):
            raise InputError(f"{name} must list {', '.join(SPECIAL)} first and no entry twice")
        self._entries, self.rules = tuple(entries), rules
        self._ids = {entry: i for i, entry in enumerate(entries) if i >= len(SPECIAL)}

    @staticmethod
    @abc.abstractmethod
    def _split(text: str) -> list[str]:
        """Return the entries of a text."""

    @classmethod
    def train(cls, lines: Iterable[str], size: int, config: TextConfig) -> Any:
        rules = TextRules(config.normal_form, config.case)
        counts = Counter(entry for line in lines for entry in cls._split(rules.apply(line)))
        first = list(dict.fromkeys([*SPECIAL, *map(rules.apply, config.user_symbols)]))
        for entry in first:
            counts.pop(entry, None)
        ordered = sorted(counts, key=lambda entry: (-counts[entry], entry))
        return cls([*first, *ordered[: size - len(first)]], rules=rules)

    @classmethod
    def from_bytes(cls, data: bytes, name: str, rules: TextRules = NO_RULES) -> Any:
        try:
            entries = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} is not JSON: {error}") from error
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise InputError(f"{name} must be a JSON list of strings")
        return cls(entries, name, rules)

    def to_bytes(self) -> bytes:
        return (json.dumps(self._entries, ensure_ascii=False, indent=0) + "\n").encode()

    def __len__(self) -> int:
        return len(self._entries)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(entry, UNK) for entry in self._split(self.rules.apply(text))]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._entries[i] for i in ids]

    def entries(self) -> list[str]:
        return list(self._entries)

    def decode(self, ids: Sequence[int]) -> str:
        return self.join(self.pieces(ids))

    def surface_forms(self, text: str) -> list[str]:
        return self._split(text)

    def join(self, pieces: Sequence[str]) -> str:
        return self.joiner.join(pieces)

    def spaced(self, pieces: Sequence[str], unknown: str = "\u2047") -> list[str]:
        return [self.joiner + piece for piece in pieces]


class WordTokenizer(_ListTokenizer):
    """Tokenizer of words, split at white space."""

    joiner = " "

    @staticmethod
    def _split(text: str) -> list[str]:
        return text.split()


class CharacterTokenizer(_ListTokenizer):
    """Tokenizer of characters, with white space."""

    joiner = ""

    @staticmethod
    def _split(text: str) -> list[str]:
        return list(text)
