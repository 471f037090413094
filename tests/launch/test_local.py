"""`ltx-launch local`: one process per rank, and a failure of one ends all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE
from launch.local import local
from tests.support.launched import STEPS, Launched, ltx_launch
from tests.support.runs import ROOT, environment


def test_a_wrong_config_ends_every_process_with_one_message(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("modle: {}\n")
    began = time.monotonic()
    command = [sys.executable, "-m", "launch", "local", "-n", "2", str(config)]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "modle" in done.stderr
    assert "did you mean" in done.stderr
    assert time.monotonic() - began < 60


def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    package = tmp_path / "dist_trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    script = "from pathlib import Path; from launch.local import local; local(Path('c.yaml'), [], 1)"
    environ = environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    launcher = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environ)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    while Path(f"/proc/{pid.read_text()}/cmdline").exists() and _running(int(pid.read_text())):
        assert time.monotonic() < deadline, "the rank outlived its launcher"
        time.sleep(0.05)


def _running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_signal_that_comes_while_ranks_begin_reaches_all_and_asks_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the first rank and the second; neither has a handler yet."""
    package = tmp_path / "dist_trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started: list[subprocess.Popen[bytes]] = []

    def start(*given: Any, **named: Any) -> subprocess.Popen[bytes]:
        if started:
            signal.raise_signal(signal.SIGTERM)
        started.append(popen(*given, **named))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr("launch.local.subprocess.Popen", start)
    assert local(Path("c.yaml"), [], 2) == COME_BACK_CODE
    assert [process.poll() for process in started] == [-signal.SIGTERM, -signal.SIGTERM]


def test_ranks_see_the_places_a_launcher_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's module is replaced on the path by one that writes down its environment."""
    package = tmp_path / "dist_trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import os, pathlib, sys\n"
        "names = ['RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT']\n"
        "text = ' '.join([*(os.environ[n] for n in names), *sys.argv[1:]])\n"
        "pathlib.Path(os.environ['OUT'], os.environ['RANK']).write_text(text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert local(Path("c.yaml"), ["a.b=1"], 3) == 0
    seen = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    ports = {words[4] for words in seen}
    assert [words[:4] for words in seen] == [[str(r), str(r), "3", "127.0.0.1"] for r in range(3)]
    assert len(ports) == 1
    assert seen[0][5:] == ["c.yaml", "a.b=1"]


def test_what_ranks_print_is_kept_by_rank_and_shown(launched: Launched) -> None:
    assert launched.code == 0, launched.printed
    logs = {path.name: path.read_text() for path in RunFolder(launched.folder).ranks.iterdir()}
    assert sorted(logs) == ["local_0.log", "local_1.log"]
    assert f"step {STEPS}/{STEPS}" in logs["local_0.log"]
    shown = launched.printed.splitlines()
    assert sorted(shown) == sorted(line for text in logs.values() for line in text.splitlines())


def test_starts_and_ends_are_noted(launched: Launched) -> None:
    began, ended = read_log(RunFolder(launched.folder).jobs)
    assert (began["event"], began["job"], began["restart"], began["ranks"]) == ("began", "local", 0, 2)
    assert (ended["event"], ended["job"], ended["restart"], ended["code"]) == ("ended", "local", 0, 0)
    assert (ended["step"], ended["reached"], ended["again"], ended["cause"]) == (STEPS, STEPS, False, "")


def test_a_later_start_is_noted_with_its_error_and_told_from_the_first(launched: Launched, run: Path) -> None:
    RunFolder(run).done.unlink()
    done = ltx_launch("local", launched.config, f"output_dir={run}", "seed=7")
    assert done.returncode == 2
    assert done.stdout.count("error:") == 1
    began, ended = read_log(RunFolder(run).jobs)[2:]
    assert (began["restart"], ended["restart"], ended["code"]) == (1, 1, 2)
    assert "seed: was 42, now 7" in ended["cause"]
    log = (RunFolder(run).ranks / "local_0.log").read_text()
    assert log.index(f"step {STEPS}/{STEPS}") < log.index("--- job local, start 2") < log.index("error:")


def _printing(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """The launcher of a trainer that prints, in a folder of a run."""
    package = tmp_path / "dist_trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(body)
    script = (
        "from pathlib import Path; from dist_trainer.rundir import RunFolder; from launch.local import train; "
        "train(Path('c.yaml'), [], 1, RunFolder(Path('run')))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_line_is_shown_when_it_is_printed(tmp_path: Path) -> None:
    body = (
        "import pathlib, time\nprint('begun')\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.05)\nprint('on')\n"
    )
    launcher = _printing(tmp_path, body)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "begun\n"
    (tmp_path / "go").touch()
    assert launcher.communicate(timeout=60)[0] == "on\n"


def test_a_rank_whose_launcher_is_killed_can_print_until_it_has_saved(tmp_path: Path) -> None:
    body = (
        "import os, pathlib, signal, time\nleft = os.getppid()\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('begun')\nwhile os.getppid() == left: time.sleep(0.05)\n"
        "print('saving')\nprint('saved')\npathlib.Path('saved').touch()\n"
    )
    launcher = _printing(tmp_path, body)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "begun\n"
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 60
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "run" / "logs" / "ranks" / "local_0.log").read_text() == "begun\nsaving\nsaved\n"
