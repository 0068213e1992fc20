"""Pictures are well-formed SVG that holds what was said."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

import edge_attn
from edge_attn.errors import InputError
from edge_attn.runtimes.commands.evaluate import Bin, Evaluation, Score
from edge_attn.runtimes.commands.plots import alignment_svg, length_svg, picture, write
from edge_attn.runtimes.tasks.translation import Translation


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_alignments_hold_every_token_and_every_weight(toy_bundle):
    found = edge_attn.load(toy_bundle).translate(["every good cat calls a child", "", "the king"])
    svg = alignment_svg(found)
    said = texts(svg)
    for translation in found:
        for token in (*translation.source_tokens[:-1], *translation.tokens):
            assert token in said
    assert said.count("end") == 2 * 2  # a row and a column each; the empty one has no picture
    assert "chaque chat bon appelle un enfant" in said
    cells = ElementTree.fromstring(svg).findall("{*}rect")[1:]
    assert len(cells) == 7 * 7 + 3 * 3
    weights = np.array([float(cell.get("fill-opacity")) for cell in cells])
    np.testing.assert_allclose(weights[:49].reshape(7, 7), found[0].alignment, atol=6e-4)


def test_what_is_markup_or_no_text_is_shown_and_stays_well_formed():
    tokens = ("<b>&\"'", "\u2581word", "\x01\x0b\ud800\ufffe", "\U0001f600")
    shown = Translation(" ".join(tokens), -1.0, -1.0, tokens, (*tokens, "</s>"), np.full((5, 5), 0.2))
    said = texts(alignment_svg([shown]))
    assert said.count("<b>&\"'") == 2
    assert said.count("_word") == 2
    assert said.count("\ufffd" * 4) == 2
    assert said.count("\U0001f600") == 2


def test_a_translation_that_was_cut_off_has_no_end_row():
    shown = Translation("a", -1.0, -1.0, ("a",), ("b", "</s>"), np.full((1, 2), 0.5), finished=False)
    assert texts(alignment_svg([shown])) == ["a", "b", "end", "a"]


def test_nothing_aligned_gives_an_empty_picture():
    assert texts(alignment_svg([Translation("a", -1.0, -1.0, ("a",), ("b", "</s>"))])) == []
    assert texts(alignment_svg([])) == []


def evaluation(model: str, *bins: tuple[int, int, float]) -> Evaluation:
    scores = [Score(100, bleu, bleu - 3, bleu + 3, 50.0, 0.1) for _, _, bleu in bins]
    made = tuple(Bin(first, last, 40, score) for (first, last, _), score in zip(bins, scores, strict=True))
    return Evaluation(model, "numpy", 4, scores[0], made, (), 1.0, 0)


def test_bleu_by_length_has_a_line_a_model_and_a_point_a_bin(tmp_path):
    found = [
        evaluation("runs/with <attention>", (1, 5, 40.0), (6, 10, 42.5)),
        evaluation("without", (1, 5, 38.0), (6, 10, 20.0)),
    ]
    picture(found, tmp_path / "length.svg")
    svg = (tmp_path / "length.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert [len(line.get("points").split()) for line in root.findall("{*}polyline")] == [2, 2]
    assert len(root.findall("{*}circle")) == 4
    said = texts(svg)
    for words in ("with <attention>", "without", "1-5", "6-10", "100 pairs", "40 joined", "0", "50"):
        assert words in said
    heights = [float(circle.get("cy")) for circle in root.findall("{*}circle")]
    assert heights[1] < heights[0] < heights[2] < heights[3]  # the better, the higher


def test_models_whose_bins_differ_are_drawn_together():
    one, other = evaluation("one", (1, 5, 40.0)), evaluation("other", (1, 5, 30.0), (6, 10, 20.0))
    for found in ([one, other], [other, one]):
        assert texts(length_svg(found)).count("6-10") == 1


def test_no_bins_give_an_empty_picture():
    nothing = Evaluation("model", "numpy", 4, Score(1, 0.0, 0.0, 0.0, 0.0, 0.0), (), (), 1.0, 0)
    assert "model" in texts(length_svg([nothing]))


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No such file"):
        write(tmp_path / "absent" / "a.svg", "")
