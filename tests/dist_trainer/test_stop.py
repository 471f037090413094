"""Asked to save, to stop, or to stop and come back: all ranks do it together, and nothing shows it afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.stop import COME_BACK_CODE, ENDS_AT, Requests, Wish, ends_at
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.forked import Ended, Kill, launch, train
from tests.support.runs import losses, tiny_config, trained, write_config

STEPS = 8

pytestmark = pytest.mark.timeout(300)


class Runs:
    """Runs of one config, each in a folder of its own; the one named `whole` is not disturbed."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self._model, self._data = root, model, data
        train(2, self.config("whole"), logs=root / "logs_whole")

    def folder(self, name: str) -> Path:
        return self.root / name

    def config(self, name: str) -> Path:
        steps = {"optimization": {"steps": STEPS, "learning_rate": 1e-3}}
        described = tiny_config(self._model, self._data, self.folder(name), **steps)
        return write_config(self.root / f"{name}.yaml", described)

    def start(self, name: str, size: int = 2, **settings: Any) -> Ended:
        return launch(size, self.config(name), logs=self.root / f"logs_{name}", **settings)

    def go_on(self, name: str, size: int = 2) -> None:
        train(size, self.config(name), logs=self.root / f"logs_{name}_again")

    def metrics(self, name: str) -> Path:
        return self.folder(name) / "metrics.jsonl"

    def steps(self, name: str) -> int:
        return self.metrics(name).read_text().count("\n")


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("stop"), model_folder, paired_dataset.root)


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGUSR1, 1), (signal.SIGUSR2, 0), (signal.SIGTERM, 1)],
    ids=["USR1 to the last rank", "USR2 to the first", "TERM to the last"],
)
def test_a_signal_to_any_rank_saves_and_asks_to_come_back(
    runs: Runs, number: signal.Signals, rank: int
) -> None:
    name = f"{number.name}_{rank}"
    kill = Kill(rank, str(runs.metrics(name)), 2, number)
    ended = runs.start(name, kill=kill)
    assert ended.codes == [COME_BACK_CODE, 0], str(ended)
    stopped = runs.steps(name)
    assert 2 <= stopped < STEPS
    assert (runs.folder(name) / "checkpoints" / "latest").read_text() == f"step_{stopped:06d}\n"
    assert f"saved after step {stopped}: " in ended.stdout[0]
    runs.go_on(name)
    assert losses(runs.folder(name)) == losses(runs.folder("whole"))
    assert trained(runs.folder(name)) == trained(runs.folder("whole"))


def test_a_file_saves_and_goes_on(runs: Runs) -> None:
    runs.folder("save").mkdir()
    (runs.folder("save") / "SAVE").touch()
    ended = runs.start("save")
    assert ended.codes == [0, 0], str(ended)
    assert f"saved after step 1: {runs.folder('save')}/SAVE is there" in ended.stdout[0]
    assert not (runs.folder("save") / "SAVE").exists()
    assert losses(runs.folder("save")) == losses(runs.folder("whole"))


def test_a_file_stops_for_good_until_it_is_removed(runs: Runs) -> None:
    stop = runs.folder("stop") / "STOP"

    def touch() -> None:
        while not (runs.metrics("stop").is_file() and runs.steps("stop")):
            time.sleep(0.005)
        stop.touch()

    threading.Thread(target=touch, daemon=True).start()
    ended = runs.start("stop")
    assert ended.codes == [0, 0], str(ended)
    stopped = runs.steps("stop")
    assert stopped < STEPS
    again = runs.start("stop")
    assert again.codes == [0, 0], str(again)
    assert f"{stop} is there: remove it to go on" in again.stdout[0]
    assert runs.steps("stop") == stopped
    stop.unlink()
    runs.go_on("stop")
    assert losses(runs.folder("stop")) == losses(runs.folder("whole"))


def test_the_end_of_the_jobs_time_is_met_with_a_save(runs: Runs) -> None:
    # Less than the lead: the first step is the last.
    ended = runs.start("late", size=1, environ=[{ENDS_AT: str(time.time() + 20)}])
    assert ended.codes == [COME_BACK_CODE], str(ended)
    assert runs.steps("late") == 1
    assert "saved after step 1: the job ends in" in ended.stdout[0]
    runs.go_on("late", size=1)
    np.testing.assert_allclose(losses(runs.folder("late")), losses(runs.folder("whole")), rtol=1e-5)


def test_a_signal_before_the_first_step_ends_at_once_and_asks_to_come_back(runs: Runs) -> None:
    kill = Kill(0, str(runs.root / "logs_early" / "0.out"), 1, signal.SIGUSR2, text="packing: ")
    ended = runs.start("early", kill=kill)
    assert ended.codes[0] == COME_BACK_CODE, str(ended)
    assert not ended.timed_out
    assert not runs.metrics("early").exists()


def test_of_several_wishes_the_greatest_counts(tmp_path: Path) -> None:
    requests = Requests(tmp_path, is_main=True)
    assert requests.wish() is Wish.NONE
    (tmp_path / "SAVE").touch()
    assert requests.wish() is Wish.SAVE
    with requests.listening():
        requests.begin()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert requests.wish() is Wish.COME_BACK
    (tmp_path / "STOP").touch()
    assert requests.wish() is Wish.STOP
    assert Requests(tmp_path, is_main=False).wish() is Wish.NONE


def test_the_lead_grows_with_steps_and_saves_and_a_signal_too_late_says_so(tmp_path: Path) -> None:
    requests = Requests(tmp_path, is_main=True, ends_at=time.time() + 100)
    assert requests.wish() is Wish.COME_BACK, "nobody knows how long a save takes"
    requests.saved(5.0)
    assert requests.wish() is Wish.NONE
    requests.stepped(10.0)
    requests.saved(20.0)
    requests.stepped(2.0)
    assert requests.lead_s == 90.0
    requests.stepped(16.0)
    assert requests.wish() is Wish.COME_BACK
    with requests.listening():
        requests.begin()
        os.kill(os.getpid(), signal.SIGUSR2)
    told = requests.reason(Wish.COME_BACK)
    assert told.startswith("SIGUSR2 came, ")
    assert told.endswith("steps and saves here want 102 s")


def test_a_time_that_is_none_is_refused() -> None:
    assert ends_at({}) is None
    assert ends_at({ENDS_AT: "1764158400"}) == 1764158400.0
    with pytest.raises(InputError, match="LTX_JOB_ENDS_AT=soon is not a time in seconds since 1970"):
        ends_at({ENDS_AT: "soon"})
