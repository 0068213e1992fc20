"""Golden data: what the reference said about some sentences, so that a device can be held to it without torch.

Per sentence: ids, encoder outputs; along the reference's greedy tokens, per step: the 32 best log-probabilities, the
log of the remaining mass, 8 seeded projections of the whole row and of each state (so a change anywhere shows),
alignments; the tokens, scores, texts and alignment of greedy and of beam search; a digest of decoding every entry of
the vocabulary.

Noise: the reference runs in fp32 and in fp64; their largest difference at a step, times NOISE_FACTOR, is that step's
noise. A token flip is excused only where the reference's own margin is below it. It is never measured on a candidate.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn.bundle.archive import DAMAGED
from edge_attn.config.validation import from_mapping
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, ConfigError

TOP = 32
PROJECTIONS = 8
FILES = ("golden/golden.json", "golden/golden.npz")
SUMMARY = ("top_log_probs", "rest", "projections")


@dataclass(frozen=True)
class ReferenceHypothesis:
    """One hypothesis of the reference."""

    tokens: tuple[int, ...]
    text: str
    log_prob: float
    score: float
    noise: float
    """Of log_prob."""
    finished: bool


@dataclass(frozen=True)
class Golden:
    search: SearchConfig
    """The beam search that was recorded; greedy was recorded with the same limit."""
    sentences: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    greedy: tuple[ReferenceHypothesis, ...]
    n_best: tuple[tuple[ReferenceHypothesis, ...], ...]
    vocabulary: str
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)
    """By name, the sentences' rows one after another."""

    def steps(self) -> list[slice]:
        """Each sentence's rows in the arrays of steps."""
        return _slices([len(said.tokens) + 1 for said in self.greedy])

    def positions(self) -> list[slice]:
        """Each sentence's rows in the arrays of source positions."""
        return _slices([len(source) for source in self.sources])

    def alignments(self, name: str) -> list[np.ndarray]:
        """Each sentence's (tgt, src) weights from the flat array `name`; empty without attention."""
        if name not in self.arrays:
            return []
        rows = self._rows(name)
        parts = _slices([n * len(source) for n, source in zip(rows, self.sources, strict=True)])
        flat = self.arrays[name]
        return [flat[part].reshape(n, -1) for part, n in zip(parts, rows, strict=True)]

    def _rows(self, name: str) -> list[int]:
        """Rows of each sentence's alignment: one a step of greedy search, or one a symbol of the best hypothesis."""
        if name == "steps.alignment":
            return [len(said.tokens) + 1 for said in self.greedy]
        return [len(said.tokens) + said.finished for said, *_ in self.n_best]

    def files(self) -> dict[str, bytes]:
        content = dataclasses.asdict(self)
        arrays = content.pop("arrays")
        content["search"] = _plain(self.search)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        return dict(zip(FILES, (text.encode(), data.getvalue()), strict=True))

    @classmethod
    def load(cls, files: dict[str, bytes]) -> Golden:
        try:
            golden = from_mapping(cls, json.loads(files[FILES[0]]), FILES[0])
            with np.load(io.BytesIO(files[FILES[1]]), allow_pickle=False) as arrays:
                golden = dataclasses.replace(golden, arrays={name: arrays[name] for name in arrays.files})
        except (*DAMAGED, OSError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise BundleError(f"the golden data cannot be read: {error}") from error
        golden._check()
        return golden

    def _check(self) -> None:
        """Refuses content of which one part does not fit the others."""
        count = len(self.sentences)
        if not count or not all(self.n_best) or {len(self.sources), len(self.greedy), len(self.n_best)} != {count}:
            raise BundleError("the golden data does not hold every sentence's source, greedy result and n-best list")
        steps, sources = self.steps()[-1].stop, self.positions()[-1].stop
        states = (name.partition(".")[2] for name in self.arrays if name.startswith("encoder.state."))
        needed = ("top_ids", *SUMMARY, "noise", *(f"next_{name}" for name in states))
        missing = {f"steps.{name}" for name in needed} - self.arrays.keys()
        if missing:
            raise BundleError(f"the golden data has no array {min(missing)}")
        for name, rows in self.arrays.items():
            if name.endswith(".alignment"):
                sizes = zip(self._rows(name), self.sources, strict=True)
                wanted = [sum(symbols * len(source) for symbols, source in sizes)]
            else:
                wanted = [steps] if name.startswith("steps.") else [count, sources]
            if rows.shape[:1] not in [(size,) for size in wanted]:
                raise BundleError(f"the golden data's array {name} has the shape {rows.shape}, which does not fit it")


def _plain(config: SearchConfig) -> dict[str, Any]:
    """What every reader of golden data knows, and of the options that came later those that are not off."""
    default = dataclasses.asdict(SearchConfig())
    first = ("beam", "n_best", "length_penalty", "max_length")
    return {name: value for name, value in vars(config).items() if name in first or value != default[name]}


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]


def load(read: Any) -> Golden:
    """The golden data of a bundle, `read` giving its files by name."""
    return Golden.load({name: read(name) for name in FILES})
