"""Write toy-checkpoint, toy-bundle.zip and toy.tsv in this folder, in a minute.

    python tests/data/make_toy.py

The language: determiner, adjectives, noun, verb, and the same again; its translation is word for word, except that an
adjective follows its noun. So it is easy to see whether an output and its alignment are correct.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DETERMINERS = {"the": "le", "a": "un", "every": "chaque", "this": "ce"}
ADJECTIVES = {"red": "rouge", "small": "petit", "old": "vieux", "happy": "heureux", "black": "noir", "good": "bon"}
NOUNS = {
    "cat": "chat",
    "dog": "chien",
    "bird": "oiseau",
    "horse": "cheval",
    "child": "enfant",
    "king": "roi",
    "baker": "boulanger",
    "tree": "arbre",
}
VERBS = {"sees": "voit", "eats": "mange", "likes": "aime", "follows": "suit", "carries": "porte", "calls": "appelle"}
JOINTS = {"and": "et", "but": "mais", "because": "car"}

Pair = tuple[list[str], list[str]]


def _joined(*pairs: Pair) -> Pair:
    return [word for source, _ in pairs for word in source], [word for _, target in pairs for word in target]


def _one_of(random_: random.Random, words: dict[str, str]) -> Pair:
    word = random_.choice(sorted(words))
    return [word], [words[word]]


def _thing(random_: random.Random) -> Pair:
    determiner, noun = _one_of(random_, DETERMINERS), _one_of(random_, NOUNS)
    if random_.random() < 0.5:
        return _joined(determiner, noun)
    adjective = _one_of(random_, ADJECTIVES)
    source, _ = _joined(determiner, adjective, noun)
    _, target = _joined(determiner, noun, adjective)
    return source, target


def _sentence(random_: random.Random) -> Pair:
    kind = random_.randrange(8)
    if kind == 0:
        return _one_of(random_, NOUNS | VERBS)
    if kind == 1:
        return _thing(random_)
    clauses = [_joined(_thing(random_), _one_of(random_, VERBS), _thing(random_))]
    if random_.random() < 0.5:
        clauses += [_joined(_one_of(random_, JOINTS), _thing(random_), _one_of(random_, VERBS), _thing(random_))]
    return _joined(*clauses)


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Return `count` distinct pairs of sentences, determined by `seed`."""
    random_ = random.Random(seed)
    sentences: dict[str, str] = {}
    while len(sentences) < count:
        source, target = _sentence(random_)
        sentences[" ".join(source)] = " ".join(target)
    return list(sentences.items())


def write_pairs(path: Path, pairs_: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs_), encoding="utf-8")


def main() -> None:
    all_pairs = pairs(3200, seed=1)
    checkpoint, bundle = HERE / "toy-checkpoint", HERE / "toy-bundle.zip"
    write_pairs(HERE / "toy.tsv", all_pairs[3100:])
    shutil.rmtree(checkpoint, ignore_errors=True)
    with tempfile.TemporaryDirectory() as data:
        write_pairs(Path(data, "train.tsv"), all_pairs[:3000])
        write_pairs(Path(data, "valid.tsv"), all_pairs[3000:3100])
        run = [sys.executable, "-m", "edge_attn.cli"]
        options = ["--data", data, "--out", str(checkpoint), "--threads", "1"]
        subprocess.run([*run, "train", str(HERE / "toy.toml"), *options], check=True)
    (checkpoint / "training.safetensors").unlink()
    subprocess.run([*run, "export", str(checkpoint), "--out", str(bundle), "--force"], check=True)


if __name__ == "__main__":
    main()
