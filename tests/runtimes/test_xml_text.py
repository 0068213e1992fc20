"""Any text fits into an XML file."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edge_attn.runtimes.xml_text import xml_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("na\udce9", r"na\udce9"),
        ("\x00\x1b[31m\x07\x0b", r"\x00\x1b[31m\x07\x0b"),
        ("\ufffe\uffff", r"\ufffe\uffff"),
        ("a\tb\nc <&> \U0001f600 é", "a\tb\nc <&> \U0001f600 é"),
    ],
)
def test_character_that_xml_excludes_is_escaped(text, expected):
    assert xml_text(text) == expected
    element = ElementTree.Element("a")
    element.text = xml_text(text)
    data = ElementTree.tostring(element, encoding="utf-8", xml_declaration=True)
    assert ElementTree.fromstring(data).text == expected
