"""Asked to save, to stop, or to stop and come back: all ranks do it together, and nothing shows it afterwards."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.checkpoints.kept import steps_there
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE, ENDS_AT, Requests, Wish, agreed, ends_at
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.audit import assert_nothing_lost, assert_same_run
from tests.support.forked import Ended, Kill, launch, train
from tests.support.gatherings import at_once, in_memory
from tests.support.runs import tiny_config, write_config
from tests.support.struck import Strike, strike

# Thirty samples, seven a step: the first epoch ends within step 5.
STEPS, INTERVAL, EPOCH = 6, 4, 5

pytestmark = pytest.mark.timeout(600)


class Runs:
    """Runs of one config, each in a folder of its own; the one named `whole` is not disturbed."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self._model, self._data = root, model, data
        train(2, self.config("whole"), logs=root / "logs_whole")

    def folder(self, name: str) -> Path:
        return self.root / name

    def config(self, name: str, steps: int = STEPS) -> Path:
        blocks: dict[str, dict[str, Any]] = {
            "optimization": {"steps": steps, "learning_rate": 1e-3},
            "checkpoints": {"interval": INTERVAL, "keep_last_n": 1},
        }
        if name in SCENARIOS and SCENARIOS[name].exports:
            blocks["checkpoints"]["export"] = "diffusers"
        described = tiny_config(self._model, self._data, self.folder(name), **blocks)
        return write_config(self.root / f"{name}.yaml", described)

    def start(self, name: str, size: int = 2, steps: int = STEPS, **settings: Any) -> Ended:
        config, logs = self.config(name, steps), self.root / f"logs_{name}"
        return launch(size, config, logs=logs, timeout_s=240.0, **settings)

    def strike(self, name: str, strikes: list[Strike]) -> Ended:
        return strike(2, self.config(name), strikes, self.root / f"logs_{name}")

    def go_on(self, name: str, size: int = 2) -> None:
        train(size, self.config(name), logs=self.root / f"logs_{name}_again", timeout_s=240.0)

    def steps(self, name: str) -> int:
        return (self.folder(name) / "metrics.jsonl").read_text().count("\n")

    def latest(self, name: str) -> str:
        return (self.folder(name) / "checkpoints" / "latest").read_text().strip()


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("stop"), model_folder, paired_dataset.root)


@dataclass(frozen=True)
class Scenario:
    """What strikes a run, the step after which it has to end, with what code, and what it says.

    `exports`: whether it exports its checkpoints as they are made.
    """

    strikes: list[Strike]
    ends_after: int
    code: int = COME_BACK_CODE
    says: str = ""
    exports: bool = False


SCENARIOS = {
    "TERM in the first step": Scenario([Strike(1, "step", 1, "SIGTERM")], 1, exports=True),
    "USR1 to both ranks at an epoch's end": Scenario(
        [Strike(0, "step", EPOCH, "SIGUSR1"), Strike(1, "step", EPOCH, "SIGUSR1")], EPOCH
    ),
    "USR2 in the last step": Scenario([Strike(0, "step", STEPS, "SIGUSR2")], STEPS, 0),
    "TERM in the save of the interval": Scenario([Strike(1, "write", 1, "SIGTERM")], INTERVAL),
    "USR1 to the first rank in it": Scenario([Strike(0, "name", 1, "SIGUSR1")], INTERVAL),
    "three more in the save that a signal asked for": Scenario(
        [
            Strike(1, "step", 2, "SIGUSR1"),
            Strike(0, "write", 1, "SIGTERM"),
            Strike(1, "wrote", 1, "SIGUSR2"),
            Strike(0, "name", 1, "SIGTERM"),
            Strike(0, "leave", 1, "SIGTERM"),
            Strike(1, "leave", 1, "SIGUSR1"),
        ],
        2,
    ),
    "TERM in the last save and in the export": Scenario(
        [
            Strike(0, "name", 2, "SIGTERM"),
            Strike(1, "wrote", 2, "SIGTERM"),
            Strike(0, "export", 1, "SIGTERM"),
        ],
        STEPS,
        0,
    ),
    "TERM in an export that takes too long": Scenario(
        [Strike(0, "export", 1, "NO PATIENCE"), Strike(0, "export", 1, "SIGTERM")],
        STEPS,
        says="the export after the last step is left unfinished: SIGTERM came",
    ),
    "STOP in a save": Scenario([Strike(0, "write", 1, "STOP")], INTERVAL, 0, exports=True),
    "SAVE in a step, then in a save": Scenario(
        [Strike(0, "step", 2, "SAVE"), Strike(0, "write", 2, "SAVE")], STEPS, 0, "saved after step 2: "
    ),
    "SAVE and a signal in one step": Scenario(
        [Strike(0, "step", 2, "SAVE"), Strike(1, "step", 2, "SIGUSR1")], 2
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_is_asked_whenever_the_run_is_the_one_not_disturbed(runs: Runs, name: str) -> None:
    scenario, folder = SCENARIOS[name], runs.folder(name)
    folder.mkdir()
    ended = runs.strike(name, scenario.strikes)
    assert ended.codes == [scenario.code, 0], str(ended)
    assert runs.steps(name) == scenario.ends_after
    assert runs.latest(name) == f"step_{scenario.ends_after:06d}"
    assert not (folder / "SAVE").exists()
    done = scenario.ends_after == STEPS and scenario.code == 0
    assert (folder / "DONE").exists() == done
    # What comes back exports then; what is stopped for good has time for this small one.
    last_word = scenario.exports and scenario.code == 0
    assert steps_there(folder / "exports") == [scenario.ends_after] * (done or last_word)
    (folder / "STOP").unlink(missing_ok=True)
    assert scenario.says in ended.stdout[0]
    if scenario.ends_after < STEPS:
        assert f"saved after step {scenario.ends_after}: " in ended.stdout[0]
    if not done:
        runs.go_on(name)
    assert (folder / "DONE").exists()
    assert_same_run(folder, runs.folder("whole"))
    if scenario.exports:
        assert steps_there(folder / "exports") == sorted({scenario.ends_after, INTERVAL, STEPS})


@pytest.mark.parametrize(("moment", "ranks"), [("write", (0, 1)), ("name", (0,))])
def test_killed_in_a_save_it_goes_on_from_the_checkpoint_before(
    runs: Runs, moment: str, ranks: tuple[int, ...]
) -> None:
    """keep_last_n is 1: while a checkpoint is written, the one before is the only one."""
    name = f"killed_{moment}"
    ended = runs.strike(name, [Strike(rank, moment, 2, "SIGKILL") for rank in ranks])
    # Rank 1 may see that rank 0 is gone, and end, before it is killed itself.
    assert ended.codes[0] == -signal.SIGKILL, str(ended)
    assert 0 not in ended.codes
    folder = runs.folder(name) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [".step_000006.tmp", "latest", "step_000004"]
    runs.go_on(name)
    assert_same_run(runs.folder(name), runs.folder("whole"))
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_000006"]


def test_what_two_ranks_stopped_one_goes_on_with(runs: Runs) -> None:
    ended = runs.strike("alone", [Strike(1, "step", 3, "SIGUSR1")])
    assert ended.codes == [COME_BACK_CODE, 0], str(ended)
    assert "saved after step 3: another rank was told to\n" in ended.stdout[0]
    runs.go_on("alone", size=1)
    assert_nothing_lost(runs.folder("alone"), runs.folder("whole"))


def test_a_stop_lasts_until_its_file_is_removed(runs: Runs) -> None:
    stop = runs.folder("stop") / "STOP"
    stop.parent.mkdir()
    stop.touch()
    for size in (1, 2):
        ended = runs.start("stop", size=size)
        assert ended.codes == [0] * size, str(ended)
        assert ended.stdout[0] == f"{stop} is there: remove it to go on\n"
    assert list(stop.parent.iterdir()) == [stop]


def test_a_finished_run_ends_later_launches_at_once_until_it_has_more_steps(runs: Runs) -> None:
    train(2, runs.config("done"), logs=runs.root / "logs_done")
    done = runs.folder("done") / "DONE"
    assert done.read_text() == f"{STEPS}\n"
    before = {path: path.stat().st_mtime_ns for path in runs.folder("done").rglob("*")}
    for steps in (STEPS, STEPS - 2):
        ended = runs.start("done", steps=steps)
        assert ended.codes == [0, 0], str(ended)
        assert ended.stdout == [f"{done}: {STEPS} steps are trained; raise optimization.steps to go on\n", ""]
    assert {path: path.stat().st_mtime_ns for path in runs.folder("done").rglob("*")} == before
    # More steps: DONE is gone while they are trained.
    ended = runs.start("done", steps=STEPS + 500, environ=[{ENDS_AT: str(time.time() + 20)}], size=1)
    assert ended.codes == [COME_BACK_CODE], str(ended)
    assert not done.exists()


def test_the_end_of_the_jobs_time_is_met_with_a_save_and_too_little_of_it_is_told(runs: Runs) -> None:
    # Less than any lead: the first step is the last.
    ended = runs.start("late", size=1, environ=[{ENDS_AT: str(time.time() + 25)}])
    assert ended.codes == [COME_BACK_CODE], str(ended)
    assert runs.steps("late") == 1
    assert "saved after step 1: the job ends in" in ended.stdout[0]
    [warning] = [line for line in ended.stdout[0].splitlines() if line.startswith("warning: ")]
    assert "it comes back after its first step: ask for more time" in warning
    runs.go_on("late", size=1)
    assert_nothing_lost(runs.folder("late"), runs.folder("whole"))


def test_a_signal_before_the_first_step_ends_at_once_and_asks_to_come_back(runs: Runs) -> None:
    kill = Kill(0, str(runs.root / "logs_early" / "0.out"), 1, signal.SIGUSR2, text="packing: ")
    ended = runs.start("early", kill=kill)
    assert ended.codes[0] == COME_BACK_CODE, str(ended)
    assert not ended.timed_out
    assert not (runs.folder("early") / "metrics.jsonl").exists()


def test_nor_does_it_matter_whether_anybody_reads_what_it_says(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = os.fdopen(writer, "w")
            with Requests(tmp_path, is_main=True).listening():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == COME_BACK_CODE


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


def test_all_ranks_agree_on_the_greatest_wish(tmp_path: Path) -> None:
    asked = [Requests(tmp_path, is_main=rank == 0) for rank in range(3)]
    with asked[2].listening():
        asked[2].begin()
        os.kill(os.getpid(), signal.SIGUSR1)

    def agree() -> list[Any]:
        return at_once(lambda gathering: agreed(asked[gathering.world.rank], gathering), in_memory(3))

    assert agree() == [Wish.COME_BACK] * 3
    (tmp_path / "STOP").touch()
    assert agree() == [Wish.STOP] * 3


def test_the_lead_grows_with_steps_and_saves_and_a_signal_too_late_says_so(tmp_path: Path) -> None:
    requests = Requests(tmp_path, is_main=True, ends_at=time.time() + 100)
    assert requests.wish() is Wish.SAVE, "nobody knows how long a save takes"
    assert requests.reason(Wish.SAVE).endswith("s, and no save has been timed yet")
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


def test_slow_steps_of_long_ago_do_not_make_the_lead(tmp_path: Path) -> None:
    requests = Requests(tmp_path, is_main=True)
    requests.saved(5.0)
    requests.stepped(300.0)
    for _ in range(50):
        requests.stepped(1.0)
    assert requests.lead_s == 42.0


@pytest.mark.parametrize(
    ("seconds", "save_s", "step_s", "told"),
    [
        (3600, None, None, ""),
        # No save has been timed.
        (200, None, None, ""),
        (400, 20, 10, ""),
        (400, 100, 10, "had 400 s .* want 250 s .*so 150 s are left to train: ask for more time"),
        (200, 100, 10, "had 200 s .* want 250 s .*so it comes back after its first step: ask for more time"),
    ],
)
def test_a_job_too_short_for_its_steps_and_saves_is_warned_about_once(
    tmp_path: Path, seconds: int, save_s: float | None, step_s: float | None, told: str
) -> None:
    requests = Requests(tmp_path, is_main=True, ends_at=time.time() + seconds + 0.4)
    if save_s is not None and step_s is not None:
        requests.saved(save_s)
        requests.stepped(step_s)
    warning = requests.warning()
    assert re.search(told, warning) if told else warning == ""
    assert requests.warning() == ""
    assert Requests(tmp_path, is_main=True).warning() == "", "nobody knows when the job ends"


@pytest.mark.parametrize(("content", "steps"), [("8\n", 8), ("", 0), ("all", 0), (None, 0)])
def test_done_counts_when_it_holds_a_number(tmp_path: Path, content: str | None, steps: int) -> None:
    folder = RunFolder(tmp_path)
    if content is not None:
        folder.done.write_text(content)
    assert folder.steps_done() == steps


def test_a_time_that_is_none_is_refused() -> None:
    assert ends_at({}) is None
    assert ends_at({ENDS_AT: "1764158400"}) == 1764158400.0
    with pytest.raises(InputError, match="LTX_JOB_ENDS_AT=soon is not a time in seconds since 1970"):
        ends_at({ENDS_AT: "soon"})
