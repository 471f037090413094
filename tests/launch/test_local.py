"""`ltx-launch local`: one process per rank, and a failure of one ends all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import local
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
