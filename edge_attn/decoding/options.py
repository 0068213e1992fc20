"""Search options: frozen, documented on the field, validated. Standard library only: the command line loads it."""

from __future__ import annotations

from dataclasses import dataclass

from edge_attn.errors import UsageError

LENGTH_PENALTIES = ("none", "avg", "wu")
MAX_WIDTH = 1024
"""Maximum number of live hypotheses of one sentence: each has a row of the vocabulary in memory."""


@dataclass(frozen=True)
class SearchConfig:
    """Options of the search for one sentence, the same for every runtime.

    Raises:
        UsageError: a value out of range, or options that exclude each other.
    """

    beam: int = 4
    """Beam size: hypotheses that survive each step. 1 is greedy search."""
    n_best: int = 1
    """Number of hypotheses returned: at most `beam`, or any number of independent samples."""
    length_penalty: float = 1.0
    """alpha, the exponent of the length penalty. The kind none has no exponent."""
    max_length: int = 200
    """Maximum number of tokens, the end symbol included."""
    length_penalty_kind: str = "avg"
    """Divisor of the log-probability of n tokens, the end symbol included: none, 1; avg, n ** alpha; wu, ((5 + n) / 6)
    ** alpha (Wu et al. 2016, https://arxiv.org/abs/1609.08144, equation 14)."""
    coverage_penalty: float = 0.0
    """beta of Wu et al. 2016, equation 14: source tokens with little attention lower the score. 0 turns it off."""
    repetition_penalty: float = 1.0
    """theta of Keskar et al. 2019 (https://arxiv.org/abs/1909.05858), section 4.1: factor of the log-probability of a
    token that the hypothesis already contains. 1 turns it off."""
    no_repeat_ngram: int = 0
    """Size of the n-grams that must not repeat (Paulus et al. 2018, https://arxiv.org/abs/1705.04304, section 2.5). 0
    turns it off."""
    min_length: int = 0
    """Minimum number of tokens, without the end symbol."""
    suppress: tuple[int, ...] = ()
    """Token ids that are never generated, unless a prefix contains them."""
    groups: int = 1
    """Number of groups of diverse beam search (Vijayakumar et al. 2018, https://arxiv.org/abs/1610.02424, equation 5).

    Each group is penalized for the tokens of the groups before it. Must divide the beam."""
    diversity: float = 0.0
    """lambda of Vijayakumar et al. 2018, with the Hamming diversity of section 5.1."""
    alternatives: int = 0
    """Number of different first tokens after the prefix, the most probable first, each completed by a separate search.
    0 is one ordinary search."""
    sample: bool = False
    """Sample tokens instead of searching. Needs a beam of 1."""
    temperature: float = 1.0
    """Sampling temperature: probabilities become p ** (1 / temperature), renormalized."""
    top_k: int = 0
    """Sample from the k most probable tokens (Fan et al. 2018, https://arxiv.org/abs/1805.04833). 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities sum to p: the nucleus of Holtzman et al. 2020
    (https://arxiv.org/abs/1904.09751), equation 2."""
    seed: int = 0
    """Samples depend on the seed, the sentence and the number of the sample. On another runtime rounding may, rarely,
    change a token."""

    def __post_init__(self) -> None:
        for name, minimum in (
            ("beam", 1),
            ("max_length", 1),
            ("no_repeat_ngram", 0),
            ("min_length", 0),
            ("groups", 1),
            ("alternatives", 0),
            ("top_k", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < minimum:
                raise UsageError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}")
        for name, low, high in (
            ("length_penalty", 0.0, 10.0),
            ("coverage_penalty", 0.0, 10.0),
            ("repetition_penalty", 1.0, 10.0),
            ("diversity", 0.0, 100.0),
            ("temperature", 0.01, 100.0),
            ("top_p", 1e-6, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"`{name}` must be between {low:g} and {high:g}, got {getattr(self, name)}")
        if self.length_penalty_kind not in LENGTH_PENALTIES:
            raise UsageError(
                f"`length_penalty_kind` must be one of {', '.join(LENGTH_PENALTIES)}, got {self.length_penalty_kind!r}"
            )
        if self.length_penalty_kind == "none" and self.length_penalty != SearchConfig.length_penalty:
            raise UsageError(
                f"`length_penalty_kind` none divides by 1: it takes no `length_penalty`, got {self.length_penalty:g}"
            )
        if self.sample:
            if self.groups > 1 or self.diversity:
                raise UsageError("sampling has no groups: remove `groups` and `diversity`")
            if self.beam != 1:
                raise UsageError(f"sampling needs a beam of 1, got `beam` {self.beam}")
            if self.n_best < 1:
                raise UsageError(f"`n_best` must be at least 1, got {self.n_best}")
        elif not 1 <= self.n_best <= self.beam:
            raise UsageError(f"`n_best` must be between 1 and the beam (`beam` {self.beam}), got {self.n_best}")
        for name in ("temperature", "top_k", "top_p", "seed"):
            if not self.sample and getattr(self, name) != getattr(SearchConfig, name):
                raise UsageError(f"`{name}` is for sampling, which is off; add `sample`, or remove `{name}`")
        if self.min_length > self.max_length:
            raise UsageError(f"`min_length` must be at most `max_length` ({self.max_length}), got {self.min_length}")
        if self.beam % self.groups:
            raise UsageError(f"`groups` must divide the beam (`beam` {self.beam}), got {self.groups}")
        if (self.groups > 1) != (self.diversity > 0.0):
            raise UsageError(
                f"`groups` above 1 and a `diversity` above 0 need each other, got groups {self.groups} and diversity "
                f"{self.diversity:g}"
            )
        if self.alternatives and (self.sample or self.groups > 1 or self.n_best > 1):
            raise UsageError("`alternatives` exclude `sample`, `groups` and `n_best`: each is a separate search")
        if self.width > MAX_WIDTH:
            raise UsageError(
                f"at most {MAX_WIDTH} hypotheses of a sentence can be live, got {self.width}; use a smaller `beam` "
                f"or fewer samples or alternatives"
            )

    @property
    def searches(self) -> int:
        """Number of searches of each sentence: groups of the beam, samples, or alternatives."""
        return self.n_best if self.sample else self.alternatives or self.groups

    @property
    def width(self) -> int:
        """Maximum number of live hypotheses of each sentence."""
        return self.beam // self.groups * self.searches

    @property
    def returned(self) -> int:
        """Maximum number of hypotheses returned for each sentence."""
        return self.alternatives or self.n_best
