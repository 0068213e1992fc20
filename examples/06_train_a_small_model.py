"""Train a model that reverses a word, export it, and try it."""

import random
import tempfile
from pathlib import Path

import edge_attn

CONFIG = """
[data]
train = "words.tsv"
holdout = 100
[text]
kind = "characters"
[model]
embedding = 16
encoder_hidden = 32
decoder_hidden = 64
attention_size = 32
[training]
updates = 60
warmup = 10
batch_tokens = 512
learning_rate = 1e-2
validate_every = 30
"""

random.seed(1)
words = ["".join(random.choices("abcdef", k=random.randint(2, 6))) for _ in range(2000)]
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "words.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    (folder / "config.toml").write_text(CONFIG)
    edge_attn.train(folder / "config.toml", folder / "checkpoint", threads=1)
    edge_attn.export(folder / "checkpoint", folder / "bundle")
    for translation in edge_attn.load(folder / "bundle").translate(["abc", "fade"]):
        print(translation.text, translation.score)
