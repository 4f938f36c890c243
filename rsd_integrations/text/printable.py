"""Text of others as it may be shown: on a terminal, on a page, in an error."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BIDI = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that cannot steer a terminal or reorder a line: control characters and half ones become U+FFFD.

    A model, a server or a checkpoint may name escape sequences; shown raw they could recolour, clear or forge
    the screen.
    """
    return _BIDI.sub("\ufffd", _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))
