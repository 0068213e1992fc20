"""Text for XML files, which cannot contain most control characters, nor half of a surrogate pair."""

from __future__ import annotations

import re

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Return `text` with an escape sequence in place of each character that XML cannot contain."""
    return NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
