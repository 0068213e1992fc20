"""Print how a bundle translates everyday sentences and numbers, English to French.

    python tests/tools/everyday.py BUNDLE

`everyday.tsv` in `tests/data/embedded` has sentences and their accepted translations, separated by ` | `. Case,
spaces and the kind of apostrophe do not count. `numbers.txt` has sentences with numbers and times, none of which is
in the training data or its templates. A translation keeps the numbers if it has the same ones as the source.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import edge_attn

DATA = Path(__file__).resolve().parents[1] / "data" / "embedded"


def everyday_sentences() -> list[tuple[str, list[str]]]:
    """Return the sentences with their accepted translations."""
    lines = (DATA / "everyday.tsv").read_text(encoding="utf-8").splitlines()
    return [(source, accepted.split(" | ")) for source, accepted in (line.split("\t") for line in lines)]


def number_sentences() -> list[str]:
    """Return the sentences with numbers."""
    return (DATA / "numbers.txt").read_text(encoding="utf-8").splitlines()


def normalize(text: str) -> str:
    """Return a text in lower case, with single plain spaces and straight apostrophes."""
    return " ".join(text.replace("’", "'").lower().split())


def is_accepted(translation: str, accepted: Sequence[str]) -> bool:
    """Return whether a translation is one of the accepted ones."""
    return normalize(translation) in {normalize(text) for text in accepted}


def keeps_numbers(source: str, translation: str) -> bool:
    """Return whether a translation has the same numbers as its source, in any order. Minutes may lose a zero."""
    return sorted(map(int, re.findall(r"\d+", source))) == sorted(map(int, re.findall(r"\d+", translation)))


def main(bundle: str) -> None:
    """Translate both lists with beam 4 and print the misses and the counts."""
    everyday, numbers = everyday_sentences(), number_sentences()
    with edge_attn.load(bundle) as model:
        texts = [t.text for t in model.translate([source for source, _ in everyday] + numbers)]
    right = 0
    for (source, accepted), text in zip(everyday, texts, strict=False):
        right += is_accepted(text, accepted)
        if not is_accepted(text, accepted):
            print(f"everyday  {source}  {text}")
    preserved = 0
    for source, text in zip(numbers, texts[len(everyday) :], strict=True):
        preserved += keeps_numbers(source, text)
        if not keeps_numbers(source, text):
            print(f"number    {source}  {text}")
    print(f"everyday sentences: {right} of {len(everyday)} right")
    print(f"numbers: {preserved} of {len(numbers)} sentences keep theirs")


if __name__ == "__main__":
    main(sys.argv[1])
