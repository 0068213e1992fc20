"""Write the training data of the embedded model: the train split and sentences derived from it.

    python tests/tools/augment_pairs.py TRAIN.tsv.gz OUT.tsv.gz

The train split of short everyday sentences has few numbers and names, no text in capitals or lower case, and no line of
two sentences. Added, with a fixed seed, are: pairs with other numbers, names and places; sentences with numbers, times
and dates from the templates and phrases of `tests/data/embedded/phrases.json`; pairs in lower case without the last
mark, and in capitals; two and three pairs joined. Every pair of the split stays as it is.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Pair = tuple[str, str]

PHRASES = json.loads((Path(__file__).parents[1] / "data/embedded/phrases.json").read_text(encoding="utf-8"))
VOWELS = "AEIOUYÉÈÊHaeiouyéèêh"
NUMBER = re.compile(r"\d+")


def number_of_slot(slot: str, rng: random.Random) -> str:
    """Return a random number for a slot of a template: hour, minute, day, year, small, large, decimal or digits."""
    choices: dict[str, Callable[[], str]] = {
        "hour": lambda: str(rng.randint(1, 12)),
        "hour24": lambda: str(rng.randint(13, 23)),
        "minute": lambda: f"{rng.randint(1, 59):02d}",
        "day": lambda: str(rng.randint(2, 31)),
        "year": lambda: str(rng.choice([rng.randint(1000, 1899), rng.randint(1900, 1999), rng.randint(2000, 2050)])),
        "small": lambda: str(rng.randint(2, 20)),
        "medium": lambda: str(rng.randint(13, 99)),
        "large": lambda: str(rng.choice([rng.randint(100, 999), rng.randint(1000, 9999), rng.randint(1, 99) * 100])),
        "digits": lambda: "".join(rng.choice(string.digits) for _ in range(rng.randint(3, 8))),
    }
    return choices[slot]()


def invented_name(rng: random.Random) -> str:
    """Return a name that exists nowhere, so that the model learns to copy."""
    syllables = [rng.choice("bcdfgjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l", "s"])]
    syllables += [rng.choice("bdfgklmnprstvz") + rng.choice(["a", "e", "i", "o", "u", "ia", "en", "el"])]
    if rng.random() < 0.4:
        syllables.append(rng.choice(["n", "ra", "lo", "ski", "man", "berg", "ton", "ko"]))
    return "".join(syllables).capitalize()


def replace_name(text: str, name: str, other: str) -> str:
    """Replace a name, with French elision before a vowel: "de Tom" becomes "d'Anna"."""
    if other[0] in VOWELS:
        text = re.sub(rf"\b([Dd]|[Qq]u|[Ll]orsqu|[Pp]uisqu|[Jj]usqu)e {name}\b", rf"\1'{other}", text)
    if name[0] in VOWELS and other[0] not in VOWELS:
        text = re.sub(rf"\b([Dd]|[Qq]u|[Ll]orsqu|[Pp]uisqu|[Jj]usqu)'{name}\b", rf"\1e {other}", text)
    return re.sub(rf"\b{name}\b", other, text)


def other_names(pairs: list[Pair], rng: random.Random) -> Iterator[Pair]:
    """Yield pairs with another name or place of the same kind in both sides."""
    kinds = {name: kind for kind, names in PHRASES["replaceable"].items() for name in names}
    for source, target in pairs:
        present = [n for n in kinds if re.search(rf"\b{n}\b", source) and re.search(rf"\b{n}\b", target)]
        if not present:
            continue
        for name in present:
            other = invented_name(rng) if rng.random() < 0.15 else rng.choice(PHRASES["names"][kinds[name]])
            source, target = replace_name(source, name, other), replace_name(target, name, other)
        yield source, target


def other_numbers(pairs: list[Pair], rng: random.Random) -> Iterator[Pair]:
    """Yield pairs with other numbers of as many digits, where both sides have the same numbers."""
    for source, target in pairs:
        numbers = NUMBER.findall(source)
        if not numbers or sorted(numbers) != sorted(NUMBER.findall(target)) or len(set(numbers)) != len(numbers):
            continue
        for _ in range(8):
            table = {n: str(rng.randint(max(2, 10 ** (len(n) - 1)), 10 ** len(n) - 1)) for n in numbers}
            if len(set(table.values())) == len(table):
                yield NUMBER.sub(lambda m: table[m[0]], source), NUMBER.sub(lambda m: table[m[0]], target)  # noqa: B023


def filled_templates(count: int, rng: random.Random) -> Iterator[Pair]:
    """Yield `count` pairs from the templates, with random numbers, names, places, days and months."""
    for _ in range(count):
        source, target = rng.choice(PHRASES["templates"])
        for slot in dict.fromkeys(re.findall(r"\{(\w+)\}", source)):
            if slot in PHRASES["words"]:
                left, right = rng.choice(PHRASES["words"][slot])
            else:
                kind = slot.rstrip(string.digits) if slot not in ("hour24",) else slot
                if kind in PHRASES["names"]:
                    left = invented_name(rng) if rng.random() < 0.2 else rng.choice(PHRASES["names"][kind])
                else:
                    left = number_of_slot(kind, rng)
                right = left
            source, target = source.replace(f"{{{slot}}}", left), target.replace(f"{{{slot}}}", right)
        yield source, re.sub(r"\b([Dd])e ([AEIOUÉ])", r"\1'\2", target)


def lower(pair: Pair, rng: random.Random) -> Pair:
    """Return the source in lower case, in half of the cases without its last mark and then the target without it."""
    source, target = pair[0].lower(), pair[1]
    if rng.random() < 0.5:
        source, target = source.rstrip(".!?"), re.sub(r"\s*[.!?]+$", "", target)
    return source, target


def joined(pairs: list[Pair], size: int, count: int, rng: random.Random) -> Iterator[Pair]:
    """Yield `count` rows of `size` pairs in one line."""
    for _ in range(count):
        parts = rng.sample(pairs, size)
        yield " ".join(p[0] for p in parts), " ".join(p[1] for p in parts)


def augment(pairs: list[Pair], seed: int = 1) -> list[Pair]:
    """Return the pairs and what is derived from them, in random order."""
    rng = random.Random(seed)
    phrases = [(source, target) for source, target in PHRASES["phrases"]]
    derived = [
        *rng.sample(list(other_names(pairs, rng)), min(25_000, sum(1 for _ in other_names(pairs, rng)))),
        *other_numbers(pairs, rng),
        *filled_templates(min(25_000, len(pairs)), rng),
        *(phrases * 12),
    ]
    whole = [*pairs, *derived]
    short = [p for p in whole if len(p[0]) < 20]
    cased = [
        *(lower(p, rng) for p in rng.sample(whole, len(whole) // 16)),
        *(lower(p, rng) for p in rng.sample(short, len(short) // 4)),
        *((p[0].upper(), p[1].upper()) for p in rng.sample(whole, len(whole) // 40)),
        *((p[0].upper(), p[1].upper()) for p in rng.sample(short, len(short) // 10)),
    ]
    several = [*joined(whole, 2, len(pairs) // 12, rng), *joined(whole, 3, len(pairs) // 24, rng)]
    result = [*whole, *cased, *several]
    rng.shuffle(result)
    return result


def main(source: Path, out: Path) -> None:
    """Read the pairs of `source` and write the augmented ones to `out`, both gzip-compressed."""
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    pairs = [(left, right) for left, right in (line.split("\t")[:2] for line in lines)]
    result = augment(pairs)
    content = "".join(f"{left}\t{right}\n" for left, right in result).encode()
    out.write_bytes(gzip.compress(content, mtime=0))
    print(f"{out}: {len(pairs):,} pairs of {source.name}, {len(result):,} with those derived from them")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
