"""Search with more than the default options: n-best, sampling, prefixes, alternatives."""

from pathlib import Path

import edge_attn
from edge_attn import SearchConfig

model = edge_attn.load(Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip")
sentence = "Where did you learn to speak French?"

print("The three best of a beam of eight:")
(translation,) = model.translate([sentence], config=SearchConfig(beam=8, n_best=3, no_repeat_ngram=3))
for hypothesis in translation.n_best:
    print(f"  {hypothesis.score:.3f}  {hypothesis.text}")

print("Three samples from the nucleus of 90 % probability:")
sampling = SearchConfig(beam=1, sample=True, top_p=0.9, seed=7, n_best=3)
for hypothesis in model.translate([sentence], config=sampling)[0].n_best:
    print(f"  {hypothesis.text}")

print("A translation that begins with a prefix:")
print(" ", model.translate([sentence], prefixes=["Où as-tu"])[0].text)

print("The two most likely first words, each completed:")
for hypothesis in model.translate([sentence], config=SearchConfig(alternatives=2))[0].n_best:
    print(f"  {hypothesis.text}")
