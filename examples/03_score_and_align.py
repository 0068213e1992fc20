"""Score translations of your own, and align them with their sources."""

from pathlib import Path

import edge_attn

model = edge_attn.load(Path(edge_attn.__file__).parent / "pretrained" / "en-fr.zip")
pairs = [("I am cold.", "J'ai froid."), ("I am cold.", "J'ai faim.")]
for (source, target), score in zip(pairs, model.score(pairs, alignments=True), strict=True):
    print(f"{source} -> {target}")
    print(f"  log-probability {score.log_prob:.2f}, perplexity {score.perplexity:.2f}")
    for i, j in (map(int, link.split("-")) for link in score.pharaoh().split()):
        print(f"  {score.source_tokens[i]} - {score.tokens[j]}")
