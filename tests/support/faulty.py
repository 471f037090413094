"""A decoder with faults: files whose name says so kill the process that opens them, or hold it up."""

from __future__ import annotations

from pathlib import Path

from tests.support.runs import ROOT

# The interpreter imports it at its start.
_FAULTY = """
import ctypes, time, av

opened = av.open

def open(file, *arguments, **named):
    if "deadly" in str(file):
        ctypes.string_at(0)
    if "still" in str(file):
        time.sleep(1000)
    return opened(file, *arguments, **named)

av.open = open
"""


def faulty_decoder(folder: Path) -> dict[str, str]:
    """What to add to a process's environment, for it to have the decoder; `folder` is made, and holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_FAULTY)
    return {"PYTHONPATH": f"{ROOT}:{folder}"}
