"""Golden data of encoder-decoder models: results of the reference, with which a device is compared without torch.

Per sentence: token ids and encoder outputs; along the reference's greedy tokens, per step: the 32 best
log-probabilities, the log of the remaining mass, 8 seeded projections of the whole row and of each state (so that a
change anywhere shows), alignments; tokens, scores, texts and alignment of greedy and of beam search; a digest of the
text of every vocabulary entry.

Noise: the reference runs in fp32 and in fp64. Their largest difference at a step, times NOISE_FACTOR, is the noise of
that step. A different token is accepted only where the reference's own margin is below it. In the same way each figure
of L1, L2 and L3 has its noise, which can raise its bound (tolerances.py). Noise is never measured on a candidate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn.decoding.decoder import vocabulary_sizes
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity.arrays import pack
from edge_attn.parity.decoder_probes import Probes
from edge_attn.spec import GraphSpec
from edge_attn.text.tokenizers import BOS

TOP = 32
PROJECTIONS = 8
FILES = ("golden/golden.json", "golden/golden.npz")
SUMMARY = ("top_log_probs", "rest", "projections")


@dataclass(frozen=True)
class ReferenceHypothesis:
    """Hypothesis of the reference, with its text and noise."""

    tokens: tuple[int, ...]
    text: str
    log_prob: float
    score: float
    noise: float
    """Noise of log_prob."""
    finished: bool

    @property
    def score_noise(self) -> float:
        """Return the noise of the score, which is the log-probability times an exact factor."""
        return abs(self.score / self.log_prob) * self.noise if self.log_prob else self.noise


@dataclass(frozen=True)
class Golden:
    """Recorded results of the reference. Field names are the keys of golden.json."""

    search: SearchConfig
    """Options of the recorded beam search. Greedy search was recorded with the same max_length."""
    sentences: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    greedy: tuple[ReferenceHypothesis, ...]
    n_best: tuple[tuple[ReferenceHypothesis, ...], ...]
    vocabulary: str
    noise: dict[str, float] = dataclasses.field(default_factory=dict)
    """Noise of each figure by its key, as `L1.max_abs memory.keys`; bundles of earlier versions have none."""
    text_digests: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Digests of text processing of each side; bundles of earlier versions have none."""
    candidates: int = 0
    """Number of candidates of a step; 0 in bundles of earlier versions."""
    probe_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Sizes of the probes; bundles of earlier versions have none."""
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)
    """Arrays by name, the sentences' rows one after another."""

    def __len__(self) -> int:
        return len(self.sentences)

    def steps(self) -> list[slice]:
        """Return each sentence's rows in the arrays of steps."""
        return _slices([len(best.tokens) + 1 for best in self.greedy])

    def positions(self) -> list[slice]:
        """Return each sentence's rows in the arrays of source positions."""
        return _slices([len(source) for source in self.sources])

    def alignments(self, name: str) -> list[np.ndarray]:
        """Return each sentence's weights (tgt, src) from the flat array `name`; empty without attention."""
        if name not in self.arrays:
            return []
        rows = self.alignment_rows(name)
        parts = _slices([n * len(source) for n, source in zip(rows, self.sources, strict=True)])
        flat = self.arrays[name]
        return [flat[part].reshape(n, -1) for part, n in zip(parts, rows, strict=True)]

    def alignment_rows(self, name: str) -> list[int]:
        """Return the rows of each sentence's alignment: one a step of greedy search, or a symbol of the best result."""
        if name == "steps.alignment":
            return [len(best.tokens) + 1 for best in self.greedy]
        return [len(best.tokens) + best.finished for best, *_ in self.n_best]

    def files(self) -> dict[str, bytes]:
        """Return the files of a bundle that contain it, by name."""
        content = dataclasses.asdict(self)
        arrays = content.pop("arrays")
        content["search"] = _stored_options(self.search)
        text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        return dict(zip(FILES, (text.encode(), pack(arrays)), strict=True))

    @property
    def probes(self) -> Probes | None:
        """Return the token sequences of the probes."""
        return Probes.from_arrays(self.arrays) if self.probe_sizes else None

    def coverage(self, graphs: Mapping[str, GraphSpec]) -> dict[str, tuple[int, int]]:
        """Return the number of entries that the recorded inputs look up, and that there are, for each vocabulary."""
        read = {token for source in self.sources for token in source}
        hypotheses = [*self.greedy, *(hypothesis for recorded in self.n_best for hypothesis in recorded)]
        fed = {BOS, *(token for hypothesis in hypotheses for token in hypothesis.tokens)}
        if probes := self.probes:
            read |= {*probes.entries.tolist(), *(token for source in probes.sources for token in source)}
            fed |= set(probes.fed().tolist())
        sizes = vocabulary_sizes(graphs, "golden data")
        return {"source entries": (len(read), sizes[0]), "target entries": (len(fed), sizes[1])}

    def contents(self) -> dict[str, int]:
        """Return the counts that the manifest records, so that golden data that was cut down is refused."""
        return {
            "sentences": len(self),
            "steps": self.steps()[-1].stop,
            "beam": self.search.beam,
            "hypotheses": sum(map(len, self.n_best)),
            "candidates": self.candidates,
            **{f"{side} digests": len(digests) for side, digests in self.text_digests.items()},
            **{f"probe {name}": size for name, size in self.probe_sizes.items()},
        }


def _stored_options(config: SearchConfig) -> dict[str, Any]:
    """Return the options to store: the four of format 1, plus later ones that differ from their default."""
    default = dataclasses.asdict(SearchConfig())
    first = ("beam", "n_best", "length_penalty", "max_length")
    return {name: value for name, value in vars(config).items() if name in first or value != default[name]}


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Return consecutive slices of these sizes."""
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
