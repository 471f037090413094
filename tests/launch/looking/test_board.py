"""`ltx-launch tensorboard`: the real one, bound to this machine, with the command that leads to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from launch.looking.board import check_events, free_port, tunnel
from shards.errors import InputError
from tests.support.launched import Launched, ltx_launch
from tests.support.runs import ROOT, environment, hearing
from tests.support.runs import free_port as any_port


@pytest.mark.parametrize("whole", [False, True], ids=["run", "folder"])
def test_it_is_started_on_a_run_or_a_folder_of_runs(launched: Launched, whole: bool, tmp_path: Path) -> None:
    port = any_port()
    folder = launched.folder.parent if whole else launched.folder
    printed = tmp_path / "printed"
    with printed.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "tensorboard", str(folder), "--port", str(port)],
            env=environment(),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=hearing,
        )
    try:
        runs = _answer(f"http://localhost:{port}/data/runs", process)
        assert runs == (["run/tensorboard"] if whole else ["tensorboard"])
        assert _listens_only_here(port)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    assert f"-L {port}:localhost:{port} " in printed.read_text()


def _answer(url: str, process: subprocess.Popen[bytes], seconds: float = 120.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if found := json.loads(answer.read()):
                    return list(found)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _listens_only_here(port: int) -> bool:
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[1].endswith(wanted) and row[3] == "0A"} <= {f"0100007F{wanted}"}


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    with pytest.raises(InputError, match="no TensorBoard events"):
        check_events(tmp_path)
    done = ltx_launch("tensorboard", tmp_path, "--print")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no TensorBoard events")


def test_a_port_that_is_taken_is_refused_where_it_was_asked_for() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: .*another --port"):
            free_port(port, "localhost")
    assert free_port(None, "localhost") >= 6006


def test_the_tunnel_leads_through_the_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert tunnel(6007, {}) == "ssh -N -L 6007:localhost:6007 ann@node7"
    inside = tunnel(6007, {"SLURM_SUBMIT_HOST": "login1"})
    assert inside == "ssh -N -L 6007:localhost:6007 -J ann@login1 ann@node7"


def test_printing_starts_nothing(launched: Launched) -> None:
    done = ltx_launch("tensorboard", launched.folder, "--print", timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert "ssh -N -L" in done.stdout
