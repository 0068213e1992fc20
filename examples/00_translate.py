"""Translate with the embedded English-French model."""

from pathlib import Path

import edge_attn

bundle = Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip"
with edge_attn.load(bundle) as model:
    for translation in model.translate(["I am cold.", "She bought a new car last week."], beam=4):
        print(translation.text)
        print("  score", round(translation.score, 3), "tokens", " ".join(translation.tokens))
        print("  alignment", translation.pharaoh())

    print("A stream, in order and in bounded memory:")
    for translation in model.translate_iter(iter(["I am hungry.", "I am tired."])):
        print(" ", translation.text)
