"""The pictures of docs/watching.md, of the runs that `make demo` made.

python -m tests.support.pictures demo/runs docs/pictures
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dist_trainer.board.moving import animated
from dist_trainer.config import load
from dist_trainer.rundir import RunFolder
from dist_trainer.tiny.domain import FPS
from launch.learned import samples
from launch.lessons import clips_of
from shards.prepare.media.shapes import edges
from tests.support.browser import Browser, browser, wait_for
from tests.support.runs import environment, free_port

_LOSSES = (360, 75, 1440, 740)  # of a page of 1600 pixels: left, top, right, bottom
_CARDS = 5  # in there
_GAP = 2  # pixels between videos


def learned(runs: Path, folder: Path) -> None:
    """Videos before training above those after it, of each run, as pictures that move; references above both."""
    for mode in ("lora", "ic_lora", "full_ft"):
        rows = [samples(runs / mode, last) for last in (False, True)]
        if mode == "ic_lora":
            prompts = load(RunFolder(runs / mode).config).validation.prompts
            rows.insert(0, [edges(clip) for clip in clips_of(prompts)])
        frames = np.concatenate(_apart([np.concatenate(_apart(row, 2), axis=2) for row in rows], 1), axis=1)
        (folder / f"{mode}.gif").write_bytes(animated(frames, FPS))


def charts(runs: Path, folder: Path) -> None:
    """The page of curves, as TensorBoard shows it."""
    with _board(runs) as root, browser() as page:
        page.open(f"{root}/#custom_scalars")
        page.wait(_drawn)
        page.screenshot(folder / "charts.png")
    with Image.open(folder / "charts.png") as whole:
        whole.crop(_LOSSES).save(folder / "charts.png", optimize=True)


def _drawn(page: Browser) -> bool:
    cards = page.texts("tf-custom-scalar-multi-line-chart-card")[:_CARDS]
    return len(cards) == _CARDS and all(re.search(r"Matches \([1-9]", card) for card in cards)


def _apart(videos: Sequence[np.ndarray], axis: int) -> list[np.ndarray]:
    """Videos uint8 [F,H,W,3] with white to the right of or under each but the last."""
    gap = [(0, 0)] * 4
    gap[axis] = (0, _GAP)
    return [*(np.pad(video, gap, constant_values=255) for video in videos[:-1]), videos[-1]]


@contextmanager
def _board(runs: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    server = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/data/runs")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(prog="tests.support.pictures", description=__doc__)
    parser.add_argument("runs", type=Path, help="demo/runs")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parsed = parser.parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    learned(parsed.runs, parsed.folder)
    charts(parsed.runs, parsed.folder)


if __name__ == "__main__":
    main()
