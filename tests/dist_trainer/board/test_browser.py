"""What a person gets to see: the real `tensorboard` server, in a real browser. Pictures of it are left in tmp_path."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.board.moving import animated
from dist_trainer.board.tensorboard import TensorBoard
from tests.support.browser import CHROMIUM, DRIVER, Browser, browser, wait_for
from tests.support.runs import environment, free_port, lines

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no browser: as root, apt-get install --no-install-recommends chromium chromium-driver",
    ),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Shown:
    """A page of a TensorBoard server over `runs`, of which `full` was trained."""

    page: Browser
    root: str
    run: Path
    pictures: Path

    def tab(self, name: str, filter: str = "") -> Browser:
        self.page.open("about:blank")
        self.page.open(f"{self.root}/?tagFilter={filter}#{name}")
        return self.page

    def keep(self, name: str) -> Path:
        return self.page.screenshot(self.pictures / f"{name}.png")


@pytest.fixture(scope="module")
def shown(finished_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    logs = tmp_path_factory.mktemp("shown")
    shutil.copytree(finished_runs / "full" / "tensorboard", logs / "runs" / "full")
    frames = np.zeros((12, 48, 96, 3), np.uint8)
    for number in range(12):
        frames[number, :, 8 * number : 8 * number + 8, 0] = 255
    sink = TensorBoard(logs / "runs" / "videos", 0)
    sink.video("samples/a red bar moves right", animated(frames, 12), step=2)
    sink.close(failed=False)
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs / "runs"), "--port", str(port)]
    server = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        root = f"http://127.0.0.1:{port}"
        wait_for(f"{root}/data/runs")
        with browser() as page:
            yield Shown(page, root, finished_runs / "full", logs)
    finally:
        server.terminate()
        server.wait(30)


def test_the_last_loss_is_read_beside_its_curve(shown: Shown) -> None:
    page = shown.tab("timeseries", "train/loss$")

    def row(page: Browser) -> list[str]:
        cards = [text for text in page.texts("scalar-card") if "/loss" in text and "full" in text]
        return cards[0].rpartition("full")[2].split() if cards else []

    smoothed, value, step, *_ = page.wait(row)
    shown.keep("loss")
    records = lines(shown.run / "metrics.jsonl")
    assert int(step) == records[-1]["step"]
    assert float(value) == pytest.approx(records[-1]["train/loss"], rel=1e-3)
    assert float(smoothed) > 0


def test_charts_gather_the_curves_of_a_group(shown: Shown) -> None:
    page = shown.tab("custom_scalars")
    bins = {name for record in lines(shown.run / "metrics.jsonl") for name in record if "loss_sigma_" in name}
    # A card counts the curves that have come so far.
    wanted = {"training and held out": 1, "training, by noise level": len(bins)}

    def are_there(page: Browser) -> bool:
        cards = page.texts("tf-custom-scalar-multi-line-chart-card")
        return all(
            any(text.startswith(title) and f"Matches ({count})" in text for text in cards)
            for title, count in wanted.items()
        )

    page.wait(are_there)
    shown.keep("charts")


def test_the_config_and_the_card_are_texts(shown: Shown) -> None:
    page = shown.tab("text")
    config = " ".join((shown.run / "config.yaml").read_text().split())

    def are_there(page: Browser) -> bool:
        told = [text for text in page.texts("tf-text-loader") if "step 0" in text]
        card = any("base model" in text and "parameters" in text for text in told)
        return card and any(config in text for text in told)

    page.wait(are_there)
    shown.keep("texts")


def test_a_sample_video_is_a_picture_that_moves(shown: Shown) -> None:
    page = shown.tab("images")
    page.wait(lambda page: page.attributes("img", "naturalWidth") == ["96"])
    [source] = page.attributes("img", "src")
    shown.keep("video")
    assert any("a red bar moves right" in text for text in page.texts("tf-image-loader"))
    kind = page.run(
        "const ask = new XMLHttpRequest(); ask.open('GET', arguments[0], false); "
        "ask.overrideMimeType('text/plain; charset=x-user-defined'); ask.send(); return ask.responseText.slice(0, 6);",
        source,
    )
    assert kind.startswith("GIF")


def test_settings_are_a_row_to_compare_beside_the_loss(shown: Shown) -> None:
    page = shown.tab("hparams")

    def numbers(page: Browser) -> list[float]:
        cells = page.texts("vaadin-grid-cell-content")
        return [float(text) for text in cells if re.fullmatch(r"[0-9.e-]+", text)] if "full" in cells else []

    found = page.wait(numbers)
    shown.keep("settings")
    assert "learning_rate" in page.texts("vaadin-grid-cell-content")
    assert 0.01 in found
    last = lines(shown.run / "metrics.jsonl")[-1]["train/loss"]
    assert any(number == pytest.approx(last, rel=1e-3) for number in found)


def test_the_lengths_of_the_samples_are_a_histogram(shown: Shown) -> None:
    page = shown.tab("timeseries", "data/tokens")
    cards = page.wait(lambda page: [text for text in page.texts("histogram-card") if "/tokens" in text])
    shown.keep("lengths")
    assert "full" in cards[0]
