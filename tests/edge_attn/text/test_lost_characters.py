"""Training names the characters that a vocabulary lacks, with their numbers."""

from __future__ import annotations

import pytest

from edge_attn.config.training import TextConfig
from edge_attn.text.lost_characters import NAMED, lost_characters
from edge_attn.text.pipeline import Text

COMMON = [("the cat sat on the mat", "le chat")] * 200
RARE = [*COMMON, ("7:46 % 7", "\u20ac"), ("\u2029x", "le \u20ac")]


def test_rare_characters_are_named_with_their_numbers(caplog):
    text = Text.train(TextConfig(source_size=60, target_size=60, character_coverage=0.998), RARE)
    source, target = caplog.messages
    assert "the source vocabulary lacks" in source
    assert "7 2" in source
    assert "text.character_coverage = 1.0 or text.byte_fallback keeps them" in source
    assert target == (
        "the target vocabulary lacks 1 characters of the training text, which occur 2 times: \u20ac 2; "
        "text.character_coverage = 1.0 or text.byte_fallback keeps them"
    )
    assert lost_characters(text.target, ["\u20ac\u20ac le"]) == {"\u20ac": 2}


@pytest.mark.parametrize("options", [{}, {"character_coverage": 0.998, "byte_fallback": True, "source_size": 400}])
def test_full_coverage_loses_nothing(caplog, options):
    Text.train(TextConfig(**{"target_size": 400, **options}), RARE)
    assert caplog.messages == []


def test_characters_beyond_the_size_are_named_up_to_a_number(caplog):
    line = "".join(chr(0x4E00 + i) for i in range(40))
    Text.train(TextConfig("characters", 10, 100), [(line, "a")] * 2)
    [message] = caplog.messages
    assert "the source vocabulary lacks 34 characters of the training text, which occur 68 times" in message
    assert f"and {34 - NAMED} more; a larger text.source_size keeps them" in message


def test_control_characters_are_escaped(caplog):
    Text.train(TextConfig("characters", 5, 100), [("aaa\u2029", "a")])
    assert "\\u2029 1" in caplog.text
    assert "\u2029" not in caplog.text


def test_words_are_not_reported(caplog):
    Text.train(TextConfig("words", 6, 6), RARE)
    assert caplog.messages == []
