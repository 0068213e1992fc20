"""Search options are checked, and determine the width of the search."""

from __future__ import annotations

import pytest

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "`beam` must be at least 1, got 0"),
        ({"n_best": 0}, r"`n_best` must be between 1 and the beam \(`beam` 4\), got 0"),
        ({"n_best": 5}, r"`n_best` must be between 1 and the beam \(`beam` 4\), got 5"),
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"length_penalty": float("nan")}, "`length_penalty` must be between 0 and 10, got nan"),
        ({"length_penalty": -1.0}, "`length_penalty` must be between 0 and 10, got -1.0"),
        ({"length_penalty_kind": "gnmt"}, "`length_penalty_kind` must be one of none, avg, wu, got 'gnmt'"),
        ({"coverage_penalty": -0.1}, "`coverage_penalty` must be between 0 and 10, got -0.1"),
        ({"repetition_penalty": 0.9}, "`repetition_penalty` must be between 1 and 10, got 0.9"),
        ({"no_repeat_ngram": -1}, "`no_repeat_ngram` must be at least 0, got -1"),
        ({"min_length": -1}, "`min_length` must be at least 0, got -1"),
        ({"min_length": 9, "max_length": 8}, r"`min_length` must be at most `max_length` \(8\), got 9"),
        ({"groups": 0}, "`groups` must be at least 1, got 0"),
        ({"groups": 3, "diversity": 0.5}, r"`groups` must divide the beam \(`beam` 4\), got 3"),
        ({"groups": 2}, "`groups` above 1 and a `diversity` above 0 need each other, got groups 2 and diversity 0"),
        ({"diversity": 0.5}, "need each other, got groups 1 and diversity 0.5"),
        ({"groups": 2, "diversity": float("inf")}, "`diversity` must be between 0 and 100, got inf"),
        ({"alternatives": -1}, "`alternatives` must be at least 0, got -1"),
        (
            {"alternatives": 2, "n_best": 2},
            "`alternatives` exclude `sample`, `groups` and `n_best`: each is a separate search",
        ),
        ({"alternatives": 2, "beam": 1, "sample": True}, "`alternatives` exclude `sample`, `groups` and `n_best`"),
        ({"alternatives": 2, "groups": 2, "diversity": 0.5}, "`alternatives` exclude `sample`, `groups` and `n_best`"),
        ({"sample": True}, "sampling needs a beam of 1, got `beam` 4"),
        ({"sample": True, "beam": 1, "n_best": 0}, "`n_best` must be at least 1, got 0"),
        ({"sample": True, "beam": 1, "temperature": 0.0}, "`temperature` must be between 0.01 and 100, got 0.0"),
        ({"sample": True, "beam": 1, "top_k": -1}, "`top_k` must be at least 0, got -1"),
        ({"sample": True, "beam": 1, "top_p": 0.0}, "`top_p` must be between 1e-06 and 1, got 0.0"),
        ({"sample": True, "beam": 1, "top_p": 1.1}, "`top_p` must be between 1e-06 and 1, got 1.1"),
        ({"sample": True, "beam": 1, "seed": -1}, "`seed` must be at least 0, got -1"),
        ({"temperature": 0.5}, "`temperature` is for sampling, which is off; add `sample`, or remove `temperature`"),
        ({"top_k": 5}, "`top_k` is for sampling, which is off; add `sample`, or remove `top_k`"),
        ({"top_p": 0.5}, "`top_p` is for sampling, which is off; add `sample`, or remove `top_p`"),
        ({"seed": 7}, "`seed` is for sampling, which is off; add `sample`, or remove `seed`"),
    ],
)
def test_invalid_search_option_is_a_usage_error(options, message):
    with pytest.raises(UsageError, match=message):
        SearchConfig(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 4, 1)),
        ({"beam": 6, "groups": 3, "diversity": 0.5, "n_best": 5}, (3, 6, 5)),
        ({"beam": 1, "sample": True, "n_best": 7}, (7, 7, 7)),
        ({"beam": 2, "alternatives": 3}, (3, 6, 3)),
    ],
)
def test_search_width_and_number_of_results(options, expected):
    config = SearchConfig(**options)
    assert (config.searches, config.width, config.returned) == expected


def test_first_four_search_options_are_positional():
    assert SearchConfig(3, 2, 0.5, 9) == SearchConfig(beam=3, n_best=2, length_penalty=0.5, max_length=9)
