"""Translate with the embedded English-French model."""

from pathlib import Path

import edge_attn

bundle = Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip"
model = edge_attn.load(bundle)
for translation in model.translate(["I am cold.", "She bought a new car last week."], beam=4):
    print(translation.text)
    print("  score", round(translation.score, 3), "tokens", " ".join(translation.tokens))
    print("  alignment", translation.pharaoh())
