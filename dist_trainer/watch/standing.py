"""Where this process's threads stand, in one line and as a whole."""

from __future__ import annotations

import faulthandler
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_ROOT = str(Path(__file__).resolve().parents[2]) + "/"
_OURS = (f"{_ROOT}dist_trainer/", f"{_ROOT}shards/")
_ASKING = "/dist_trainer/dist.py"
# Where a thread waits for other ranks. On a GPU most waits hide in other calls: being found here proves waiting,
# not being found here proves nothing.
_MEETINGS = (
    "/torch/distributed/",
    "/deepspeed/comm/",
    "/deepspeed/runtime/zero/",
    _ASKING,
    "/dist_trainer/figures/metrics.py",
)
_LOADING = "/shards/stream.py"
_LOADERS = ("reader", "feed")  # begins of the names of threads that load, those that others wait for first


class Standing(NamedTuple):
    """The main thread now: `file:line function`, whether it waits for other ranks, and what changes when it moves.

    To ask again and again whether others have come is not to move.
    """

    where: str
    waits: bool
    signature: int


def standing() -> Standing:
    """Where the main thread stands; one that waits for a loading thread stands where that one, or its own, does."""
    frames = sys._current_frames()
    main = threading.main_thread().ident
    frame = frames.get(main) if main else None
    if frame is None:
        return Standing("", False, 0)
    stack = _stack(frame)
    shown = _innermost(stack)
    if shown.f_code.co_filename.endswith(_LOADING):
        shown = next(_loading(frames), shown)
    waits = any(part in f.f_code.co_filename for f in stack for part in _MEETINGS)
    asks = [depth for depth, f in enumerate(stack) if f.f_code.co_filename.endswith(_ASKING)]
    moving = stack[asks[-1] + 1 :] if asks else stack
    return Standing(_line(shown), waits, hash(tuple((id(f.f_code), f.f_lasti) for f in moving)))


def _loading(frames: dict[int, FrameType]) -> Iterator[FrameType]:
    """Where the threads that load are in this project's code."""
    for name in _LOADERS:
        for thread in threading.enumerate():
            if thread.name.startswith(name) and thread.ident in frames:
                frame = _innermost(_stack(frames[thread.ident]))
                if frame.f_code.co_filename.startswith(_OURS):
                    yield frame


def _stack(frame: FrameType) -> list[FrameType]:
    """A frame and its callers, innermost first."""
    found: list[FrameType] = []
    current: FrameType | None = frame
    while current is not None:
        found.append(current)
        current = current.f_back
    return found


def _innermost(stack: list[FrameType]) -> FrameType:
    """The innermost frame of this project, else of all."""
    return next((f for f in stack if f.f_code.co_filename.startswith(_OURS)), stack[0])


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename.removeprefix(_ROOT)}:{frame.f_lineno} {code.co_name}"


def write_stacks(path: Path, cause: str) -> bool:
    """Append the stacks of all threads to a file, below the time, the host and the cause; True when that is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}: {cause}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
    return True
