"""Replacement of unknown words through the alignment.

An unknown target token is replaced by the source word with its largest attention weight, or by that word's entry in a
phrase table (Luong et al. 2015b, https://arxiv.org/abs/1410.8206, whose model learns to point at the word; with
attention weights, as here, Jean et al. 2015, https://arxiv.org/abs/1412.2007).

The unit of a source word depends on the tokenizer, because it replaces one target token:
- words: the text between white space, as the user wrote it, in the vocabulary or not;
- characters: one character; white space is never a word;
- SentencePiece: one piece without the mark `▁` of the beginning of a word. Only characters that are in no piece are
  unknown, and a run of them is one piece: a name in another script is copied whole. A piece that is only the mark is
  never a word.
The end symbol is never a word. A sentence without any word leaves `<unk>` in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.spec import Runtime
from edge_attn.text.corpus import iter_pairs
from edge_attn.text.tokenizers import UNK


def read_phrase_table(path: Path) -> dict[str, str]:
    """Return target words by source word, from a file of `source<TAB>target` lines (.gz too).

    The first line of a source word counts.

    Raises:
        InputError: there is no such file, or a line lacks a word on either side; the sentence names the line.
    """
    table: dict[str, str] = {}
    for number, pair in enumerate(iter_pairs(path), 1):
        if pair is None:
            continue
        source, target = pair
        if not source or not target:
            side = "target" if source else "source"
            raise InputError(f"{path}, line {number}: the {side} of a phrase table's line must not be empty")
        table.setdefault(source, target)
    return table


def check_replacement(
    runtime: Runtime, replace_unknown: bool, phrase_table: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    """Return the table of replacements: empty if every word is copied, None if nothing is replaced.

    Raises:
        UsageError: a table without `replace_unknown`, or a model without attention.
    """
    if not replace_unknown:
        if phrase_table is not None:
            raise UsageError("a phrase table replaces unknown words: `phrase_table` needs `replace_unknown`")
        return None
    check_attention(runtime, "replacing unknown words")
    return phrase_table or {}


def replace_unknown_tokens(
    hypothesis: Hypothesis,
    pieces: Sequence[str],
    source_words: Sequence[str],
    phrase_table: Mapping[str, str] | None,
) -> list[str]:
    """Return the pieces of the hypothesis with each unknown one replaced, unless there is no table.

    Args:
        hypothesis: tokens and attention weights.
        pieces: piece of each target token, (tgt).
        source_words: text of each source token without the end symbol, (src - 1).
        phrase_table: replacements of source words; None replaces nothing.
    """
    replaced, weights = list(pieces), hypothesis.alignment
    words = [i for i, word in enumerate(source_words) if word.strip()]
    if phrase_table is None or weights is None or not words:
        return replaced
    for j, token in enumerate(hypothesis.tokens):
        if token == UNK:
            word = source_words[words[int(weights[j, words].argmax())]]
            replaced[j] = phrase_table.get(word, word)
    return replaced
