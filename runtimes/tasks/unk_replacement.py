"""Unknown words of a translation, replaced through the alignment.

Where the model says that here stands a word that it does not know, the source word that this place attends to most is
put, or what a phrase table has for it (Luong et al. 2015b, https://arxiv.org/abs/1410.8206, whose model learns to say
the place; by the attention's weights, as here, Jean et al. 2015, https://arxiv.org/abs/1412.2007).

What a source word is follows the model's text, because what stands in its place is one target token:
- words: what stands between white space, as it was written, `<unk>` or not;
- characters: one character; white space is no word;
- SentencePiece: one piece without the mark `▁` of a word's beginning. Only characters that no piece holds are unknown,
  and a run of them is one piece; so a name in another script is copied as a whole, and of `d'Αθήνα.` what is
  known stays. A piece that is nothing but the mark is no word.
The end symbol is no word. A sentence without any keeps its `<unk>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.base import check_attention
from edge_attn.spec import Runtime
from edge_attn.text.corpus import iter_pairs
from edge_attn.text.tokenizers import UNK


def read_phrase_table(path: Path) -> dict[str, str]:
    """The target words by their source words, from a file of `source<TAB>target` lines (.gz too); of several lines for
    one source word, the first counts.

    Raises:
        InputError: no such file, or a line without a word on either side, named by its number.
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
    """The table to replace by: empty if every word is copied, None if nothing is replaced.

    Raises:
        UsageError: a table, but nothing is to be replaced; a model without attention.
    """
    if not replace_unknown:
        if phrase_table is not None:
            raise UsageError("a phrase table replaces unknown words: it needs replace_unknown (--replace-unknown)")
        return None
    check_attention(runtime, "replacing unknown words")
    return phrase_table or {}


def replaced(
    hypothesis: Hypothesis,
    pieces: Sequence[str],
    surface_forms: Sequence[str],
    phrase_table: Mapping[str, str] | None,
) -> list[str]:
    """The `pieces` of the hypothesis (tgt), each unknown one replaced unless there is no table.

    `surface_forms` are what the user wrote for each source token but the end symbol (src - 1).
    """
    made, weights = list(pieces), hypothesis.alignment
    words = [i for i, surface in enumerate(surface_forms) if surface.strip()]
    if phrase_table is None or weights is None or not words:
        return made
    for j, token in enumerate(hypothesis.tokens):
        if token == UNK:
            word = surface_forms[words[int(weights[j, words].argmax())]]
            made[j] = phrase_table.get(word, word)
    return made
