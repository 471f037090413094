from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_trainer.logs import LineLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "logs" / "a.jsonl", 0)
    for step in (1, 2):
        log.write({"step": step, "ids": [2**64 - 1], "loss": 0.1})
        lines = (tmp_path / "logs" / "a.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == {"step": step, "ids": [2**64 - 1], "loss": 0.1}
        assert len(lines) == step
    log.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.integers(0, 9), after=st.integers(0, 12), torn=st.integers(0, 30))
def test_a_resumed_log_goes_on_right_after_the_checkpoint(
    tmp_path: Path, written: int, after: int, torn: int
) -> None:
    """Steps after the checkpoint are dropped, and so is a last line that a kill cut short, wherever it did."""
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    log = LineLog(path, 0)
    for step in range(1, written + 1):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    with path.open("a") as file:
        file.write(json.dumps({"step": written + 1, "text": "b" * 20})[:torn])
    log = LineLog(path, after)
    kept = list(range(1, min(written, after) + 1))
    assert steps(path) == kept
    log.write({"step": after + 1})
    log.close()
    assert steps(path) == [*kept, after + 1]


def test_a_log_that_begins_at_zero_forgets_an_older_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    LineLog(path, 0).close()
    assert path.read_text() == ""
