"""The options of search and of runtimes: frozen, documented on the field, refusing nonsense. Standard library only; the
command line loads them and no other configuration, to answer --help at once."""

from __future__ import annotations

from dataclasses import dataclass

from edge_attn.errors import UsageError

LENGTH_PENALTIES = ("none", "avg", "wu")
WIDEST = 1024
"""Hypotheses of one sentence that live at a time, at most: each has its row of the vocabulary in memory."""


@dataclass(frozen=True)
class SearchConfig:
    """How a sentence is searched for; the same for every runtime."""

    beam: int = 4
    """Hypotheses kept at each step; 1 is greedy search."""
    n_best: int = 1
    """Hypotheses returned: at most `beam`, or any number of independent samples."""
    length_penalty: float = 1.0
    """alpha: the power of what the log-probability is divided by; the kind none takes none."""
    max_length: int = 200
    """Tokens, at most, the end symbol counted."""
    length_penalty_kind: str = "avg"
    """What a hypothesis of n tokens, the end symbol counted, is divided by: none, 1; avg, n ** alpha; wu, the length
    penalty of Wu et al. 2016 (https://arxiv.org/abs/1609.08144), equation 14, ((5 + n) / 6) ** alpha."""
    coverage_penalty: float = 0.0
    """beta of Wu et al. 2016, equation 14: what was hardly attended to lowers the score; 0 turns it off."""
    repetition_penalty: float = 1.0
    """theta of Keskar et al. 2019 (https://arxiv.org/abs/1909.05858), section 4.1: the log-probability of a token that
    the hypothesis already holds counts so many times; 1 turns it off."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens comes twice (Paulus et al. 2018, https://arxiv.org/abs/1705.04304, section 2.5); 0
    turns it off."""
    min_length: int = 0
    """Tokens, at least, the end symbol not counted."""
    suppress: tuple[int, ...] = ()
    """Tokens that never come, unless a prefix holds them."""
    groups: int = 1
    """Parts of the beam that are searched one after another, each kept away from the tokens of those before it
    (Vijayakumar et al. 2018, https://arxiv.org/abs/1610.02424, equation 5); must divide the beam."""
    diversity: float = 0.0
    """lambda of Vijayakumar et al. 2018, with the Hamming diversity of section 5.1."""
    alternatives: int = 0
    """So many different tokens after the prefix, the most likely first, each completed by a search of its own; 0: one
    search, of all of them."""
    sample: bool = False
    """Tokens are drawn, not searched for; needs a beam of 1."""
    temperature: float = 1.0
    """Of what is drawn from: p ** (1 / temperature), renormalized."""
    top_k: int = 0
    """Only the k most likely tokens are drawn from (Fan et al. 2018, https://arxiv.org/abs/1805.04833); 0: all."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities sum to p are drawn from: the nucleus of Holtzman et al. 2020
    (https://arxiv.org/abs/1904.09751), equation 2."""
    seed: int = 0
    """What is drawn follows from the seed, the sentence and the number of the sample; on another runtime rounding may,
    rarely, turn a draw."""

    def __post_init__(self) -> None:
        for name, least in (
            ("beam", 1),
            ("max_length", 1),
            ("no_repeat_ngram", 0),
            ("min_length", 0),
            ("groups", 1),
            ("alternatives", 0),
            ("top_k", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, low, high in (
            ("length_penalty", 0.0, 10.0),
            ("coverage_penalty", 0.0, 10.0),
            ("repetition_penalty", 1.0, 10.0),
            ("diversity", 0.0, 100.0),
            ("temperature", 0.01, 100.0),
            ("top_p", 1e-6, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must lie between {low:g} and {high:g}, got {getattr(self, name)}")
        if self.length_penalty_kind not in LENGTH_PENALTIES:
            raise UsageError(
                f"length_penalty_kind must be one of {', '.join(LENGTH_PENALTIES)}, got {self.length_penalty_kind!r}"
            )
        if self.length_penalty_kind == "none" and self.length_penalty != SearchConfig.length_penalty:
            raise UsageError(
                f"length_penalty_kind none divides by 1: it takes no length_penalty, got {self.length_penalty:g}"
            )
        if self.sample:
            if self.groups > 1 or self.diversity:
                raise UsageError("sampling has no groups: leave out groups and diversity")
            if self.beam != 1:
                raise UsageError(f"sampling draws one token at a time: it needs a beam of 1, got beam {self.beam}")
            if self.n_best < 1:
                raise UsageError(f"n_best must be at least 1, got {self.n_best}")
        elif not 1 <= self.n_best <= self.beam:
            raise UsageError(f"n_best must lie between 1 and the beam ({self.beam}), got {self.n_best}")
        for name in ("temperature", "top_k", "top_p", "seed"):
            if not self.sample and getattr(self, name) != getattr(SearchConfig, name):
                raise UsageError(f"{name} is for sampling, and sample is off")
        if self.min_length > self.max_length:
            raise UsageError(f"min_length must be at most max_length ({self.max_length}), got {self.min_length}")
        if self.beam % self.groups:
            raise UsageError(f"groups must divide the beam ({self.beam}), got {self.groups}")
        if (self.groups > 1) != (self.diversity > 0.0):
            raise UsageError(
                f"groups above 1 and a diversity above 0 need each other, got groups {self.groups} and diversity "
                f"{self.diversity:g}"
            )
        if self.alternatives and (self.sample or self.groups > 1 or self.n_best > 1):
            raise UsageError("alternatives are searched for one by one: without sample, groups or n_best")
        if self.width > WIDEST:
            raise UsageError(
                f"at most {WIDEST} hypotheses of a sentence live at a time, got {self.width}; take a smaller beam "
                f"or fewer samples or alternatives"
            )

    @property
    def searches(self) -> int:
        """Independent ones of each sentence: groups of the beam, samples, or alternatives."""
        return self.n_best if self.sample else self.alternatives or self.groups

    @property
    def width(self) -> int:
        """Hypotheses of each sentence that live at a time, at most."""
        return self.beam // self.groups * self.searches

    @property
    def returned(self) -> int:
        """Hypotheses of each sentence, at most."""
        return self.alternatives or self.n_best
