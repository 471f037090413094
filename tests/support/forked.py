"""Ranks as real processes without the price of their imports: one parent imports the trainer, each rank is its fork.

python -m tests.support.forked reads a JSON launch from each line of its input and answers with a JSON line when all
ranks of it have ended.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.runs import ROOT, environment, free_port, ranks

_TRACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Kill:
    """Send `rank` a signal, SIGKILL unless said, `after_s` seconds after `file` holds `text` (of a log: its newline) so
    many times."""

    rank: int
    file: str
    lines: int
    number: int = signal.SIGKILL
    text: str = "\n"
    after_s: float = 0.0


@dataclass(frozen=True)
class Launch:
    """`python -m module arguments...` on each rank; `environ` replaces what a launcher sets for a rank.

    A rank stopped by `kill` is killed when all others have ended, as a launcher would. `later` comes after `kill`.
    """

    arguments: list[list[str]]
    logs: str
    module: str = "dist_trainer.train"
    timeout_s: float = 60.0
    absent: list[int] = field(default_factory=list)
    kill: Kill | None = None
    later: Kill | None = None
    environ: list[dict[str, str]] | None = None


@dataclass(frozen=True)
class Ended:
    """How a launch ended. Exit codes by rank (None: never started; negative: the signal), what each rank printed,
    seconds from the start and from the first rank's end to the last one's, and whether the limit was passed."""

    codes: list[int | None]
    stdout: list[str]
    stderr: list[str]
    seconds: float
    seconds_after_first: float
    timed_out: bool

    def __str__(self) -> str:
        printed = "\n".join(
            f"--- rank {rank}\n{out}\n{error}"
            for rank, (out, error) in enumerate(zip(self.stdout, self.stderr, strict=True))
        )
        return f"exit codes {self.codes} after {self.seconds:.1f} s\n{printed}"

    @property
    def errors(self) -> list[str]:
        """Lines of all ranks that begin with `error:`."""
        return [line for text in self.stderr for line in text.splitlines() if line.startswith("error:")]


def launch(size: int, *arguments: str | Path, logs: Path, **settings: Any) -> Ended:
    """Run a launch of `size` ranks to its end, the same arguments on each; `settings` are fields of Launch.

    A single rank is started as a user starts it, without a launcher's environment.
    """
    settings.setdefault("arguments", [[str(argument) for argument in arguments]] * size)
    if size == 1:
        settings.setdefault("environ", [{}])
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(asdict(Launch(logs=str(logs), **settings))) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the parent of the ranks has ended"
    return Ended(**json.loads(answer))


def train(size: int, config: Path, logs: Path, **settings: Any) -> Ended:
    """Train a config; fails with all output on a bad exit code."""
    ended = launch(size, config, logs=logs, **settings)
    assert ended.codes == [0] * size, str(ended)
    return ended


def several(size: int, *configs: Path, logs: Path, timeout_s: float = 600.0) -> Ended:
    """Train configs one after another in the same ranks; fails with all output on a bad exit code."""
    ended = launch(size, *configs, logs=logs, module="tests.support.several_runs", timeout_s=timeout_s)
    assert ended.codes == [0] * size, str(ended)
    return ended


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked"],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    return process


def _serve() -> None:
    _import_everything()
    # DeepSpeed collects garbage again and again as it starts: over a second each, if it looks at all of the imports.
    gc.freeze()
    for line in sys.stdin:
        spec = json.loads(line)
        kills = {name: Kill(**spec[name]) if spec[name] else None for name in ("kill", "later")}
        ended = _run(Launch(**{**spec, **kills}))
        print(json.dumps(asdict(ended)), flush=True)


def _import_everything() -> None:
    # All that dist_trainer.train imports, but not itself: each rank runs it as its main module.
    importlib.import_module("dist_trainer.run")
    importlib.import_module("diffusers.models.transformers.transformer_ltx")
    importlib.import_module("shards.prepare.encode.models")
    # DeepSpeed imports torch's compiler when it looks at an optimizer: two seconds.
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def _run(spec: Launch) -> Ended:
    size, port, began = len(spec.arguments), free_port(), time.monotonic()
    logs = Path(spec.logs)
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    running = {}
    for rank in set(range(size)) - set(spec.absent):
        environ = spec.environ[rank] if spec.environ else ranks(size, rank, port)
        pid = os.fork()
        if pid == 0:
            _be_rank(spec.module, spec.arguments[rank], environ, logs / str(rank))
        running[pid] = rank
    codes, ends, timed_out = _wait(running, spec, began)
    return Ended(
        codes=[codes.get(rank) for rank in range(size)],
        stdout=[_text(logs / f"{rank}.out") for rank in range(size)],
        stderr=[_text(logs / f"{rank}.err") for rank in range(size)],
        seconds=max(ends) - began,
        seconds_after_first=max(ends) - min(ends),
        timed_out=timed_out,
    )


def _be_rank(module: str, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
    """Become a rank; leaves by SystemExit through the whole stack, so that the interpreter ends as it would."""
    os.setsid()
    for descriptor, ending in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in _TRACES:
        os.environ.pop(name, None)
    os.environ.update(environ)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _wait(running: dict[int, int], spec: Launch, began: float) -> tuple[dict[int, int], list[float], bool]:
    codes: dict[int, int] = {}
    ends: list[float] = []
    kills, timed_out = [kill for kill in (spec.kill, spec.later) if kill], False
    stopped: set[int] = set()
    while running:
        time.sleep(0.01)
        if kills and _text(Path(kills[0].file)).count(kills[0].text) >= kills[0].lines:
            kill = kills.pop(0)
            time.sleep(kill.after_s)
            victim = next(pid for pid, rank in running.items() if rank == kill.rank)
            os.kill(victim, kill.number)
            if kill.number == signal.SIGSTOP:
                stopped.add(victim)
        if stopped and running.keys() == stopped:
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)
            stopped = set()
        if not timed_out and time.monotonic() - began > spec.timeout_s:
            timed_out = True
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
                ends.append(time.monotonic())
    return codes, ends, timed_out


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


if __name__ == "__main__":
    _serve()
