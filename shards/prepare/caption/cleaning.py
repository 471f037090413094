"""A model's answer as a caption: one line, without the words that only say that it is a caption."""

from __future__ import annotations

import re

_LENGTH = "(?:short |brief )?"
_MEDIUM = (
    "(?:video clip|video|clip|footage|film|movie|animated sequence|animation|sequence|scene|image|picture|"
    "photograph|photo|frame)"
)
_SHOWS = (
    "(?:shows?|depicts?|displays?|features?|captures?|presents?|showcases?|highlights?|introduces?|portrays?)"
)
_OPENING = re.compile(
    r"(?:caption ?: ?)?"
    rf"(?:in (?:the|this|these) {_LENGTH}{_MEDIUM}s?,(?: we (?:can )?see\b(?: that\b)?)?"
    rf"|(?:the|this|these) {_LENGTH}{_MEDIUM}s? {_SHOWS}\b(?: that\b)?)"
    r"|caption ?:",
    re.IGNORECASE,
)


def clean_caption(text: str) -> str:
    """`text` without an opening such as "Caption:", "In the video," or "This clip shows"; capitalised again.

    Only one opening is taken, at the very start. White space becomes single blanks. May come out empty.
    """
    text = one_line(text)
    match = _OPENING.match(text)
    if match is None:
        return text
    rest = text[match.end() :].lstrip(" ,:")
    return rest[:1].upper() + rest[1:]


def one_line(text: str) -> str:
    """`text` with all white space as single blanks, none at the ends, without halves of characters."""
    # Servers may leave such a half where they cut an answer, and no file takes it.
    return " ".join(text.encode("utf-8", "ignore").decode().split())
