"""Texts for others to read, without the passwords in them."""

from __future__ import annotations

import re


def masked(text: str) -> str:
    """A text without the user names and passwords of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s?#]*@", "***@", text)
