"""The command ``ltx-shards`` in this process."""

from __future__ import annotations

import sys

import pytest

from shards.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ``ltx-shards ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["ltx-shards", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)
