"""The chain from clips to weights: its order, what each stage is, and that none stays when one cannot be queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.config import RunConfig, load
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from launch.cli import main
from launch.queueing import queue
from launch.queueing.pipeline import Data, pipeline, stages
from launch.queueing.resources import Resources
from shards.errors import InputError
from tests.support.programs import SBATCH, stand_ins
from tests.support.runs import tiny_config, write_config

GPUS = Resources(nodes=4, gpus_per_node=8, partition="gpu", dependency="afterok:7")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load(write_config(tmp_path / "c.yaml", tiny_config(tmp_path, tmp_path / "out", tmp_path / "run")))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "clips.csv").touch()
    return Data(str(tmp_path / "clips.csv"), "a_model", "64x64x9", workers=3, more=("--rows-per-shard", "2"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return stand_ins(
        tmp_path / "bin", monkeypatch, sbatch=SBATCH, srun="exit 1", scancel='echo "$@" > "$HERE/scancel"'
    )


def asked(folder: Path, job: str) -> set[str]:
    text = (folder / f"{job}.job").read_text()
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}


def test_each_stage_waits_for_the_one_before_and_for_nothing_that_failed(
    config: RunConfig, data: Data, slurm: Path
) -> None:
    queued = pipeline(config, GPUS, data)
    assert [(one.name, one.job) for one in queued] == [
        ("prepare", "100"),
        ("doctor", "101"),
        ("train", "102"),
        ("export", "103"),
    ]
    for job, before in zip(("100", "101", "102", "103"), ("7", "100", "101", "102"), strict=True):
        assert {f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes", "--requeue"} <= asked(
            slurm, job
        )
        assert "--partition=gpu" in asked(slurm, job)
    (record,) = read_log(RunFolder(Path(config.output_dir)).jobs)
    assert record["job"] == "102"
    assert record["stages"] == {"prepare": ["100_0", "100_1", "100_2"], "doctor": ["101"]}


def test_stages_ask_for_what_they_need(config: RunConfig, data: Data, slurm: Path) -> None:
    pipeline(config, GPUS, data)
    assert {"--array=0-2%3", "--gpus-per-node=1", "--nodes=1"} <= asked(slurm, "100")
    assert {"--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8"} <= asked(slurm, "102")
    for job in ("101", "103"):
        assert "--nodes=1" in asked(slurm, job)
        assert not [one for one in asked(slurm, job) if one.startswith("--gpus")]


def test_the_data_stages_are_commands_a_user_could_type(config: RunConfig, data: Data) -> None:
    prepare, doctor, _, export = stages(config, GPUS, data)[0]
    out, run = config.data.preprocessed_data_root, str(config.output_dir)
    encode = f"encode {data.table} --model a_model --buckets 64x64x9 --out {out} --rows-per-shard 2"
    assert prepare.command == f"3 x ltx-shards {encode}"
    assert doctor.command == f"ltx-shards doctor {out}"
    assert export.command == f"ltx-train export {run}"
    assert len(prepare.order.tasks) == 3


def test_what_was_stopped_is_not_exported(config: RunConfig, data: Data) -> None:
    *_, export = stages(config, GPUS, data)[0]
    assert export.order.tasks[0].done == str(config.output_dir)  # type: ignore[attr-defined]


def test_every_stage_runs_the_snapshot_that_is_there_when_it_is_queued(
    config: RunConfig, data: Data, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, training = stages(config, GPUS, data)
    stand_ins(slurm, monkeypatch, sbatch=f'[ -d "{training.order.snapshot}/launch" ] || exit 1\n{SBATCH}')
    pipeline(config, GPUS, data)
    for stage in chain:
        text = queue.script(stage.order)
        assert f"PYTHONPATH={training.order.snapshot}" in text
        last = "job-left" if stage.name == "train" else "stage-left"
        assert f"-P -m launch {last}" in text, "what becomes of the run is decided for its own job"


@pytest.mark.parametrize(
    ("code", "restart", "state", "again"),
    [
        (137, 0, "RUNNING", True),
        (125, 0, "RUNNING", True),  # Slurm's own where it ran out of memory
        (1, 0, "RUNNING", False),
        (137, 5, "RUNNING", False),
        (143, 0, "COMPLETING", False),  # cancelled
    ],
)
def test_one_that_is_killed_comes_back_a_few_times(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, code: int, restart: int, state: str, again: bool
) -> None:
    show = f'echo "JobId=9 JobState={state} Reason=None Restarts={restart} ExcNodeList=(null)"'
    stand_ins(slurm, monkeypatch, scontrol=f'case $1 in show) {show} ;; *) echo "$*" >> "$HERE/done" ;; esac')
    marks = {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "RESTART_COUNT": str(restart)}
    for name, value in marks.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("sys.argv", ["ltx-launch", "stage-left", str(code)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert (slurm / "done").exists() == again
    assert not again or (slurm / "done").read_text() == "requeue 7_2\n"


def test_a_chain_that_cannot_be_queued_to_its_end_leaves_nothing(
    config: RunConfig, data: Data, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(
        slurm,
        monkeypatch,
        sbatch=f'[ -e "$HERE/102.job" ] && echo "sbatch: error: full" >&2 && exit 1\n{SBATCH}',
    )
    with pytest.raises(InputError, match=r"^sbatch: full$"):
        pipeline(config, GPUS, data)
    assert (slurm / "scancel").read_text() == "100 101 102\n"
    assert not Path(config.output_dir).exists()


def test_a_table_that_is_not_there_queues_nothing(config: RunConfig, slurm: Path) -> None:
    with pytest.raises(InputError, match=r"--table none\.csv"):
        pipeline(config, GPUS, Data("none.csv", "m", "64x64x9"))
    assert not list(slurm.glob("*.job"))


def typed(
    config: RunConfig,
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *more: str,
) -> list[str]:
    """What `ltx-launch pipeline` prints, line by line."""
    path = Path(config.output_dir).parent / "c.yaml"
    words = ["pipeline", str(path), "--table", data.table, "--buckets", "64x64x9", "--model", "a_model"]
    monkeypatch.setattr("sys.argv", ["ltx-launch", *words, *more])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    return capsys.readouterr().out.splitlines()


def test_the_dry_run_shows_what_each_stage_runs_and_waits_for(
    config: RunConfig, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = typed(config, data, monkeypatch, capsys, "--dry-run", "--workers=3", "--nodes=2")
    found = [line.split(maxsplit=2) for line in printed[1:]]
    assert [one[:2] for one in found] == [
        ["prepare", "-"],
        ["doctor", "prepare"],
        ["train", "doctor"],
        ["export", "train"],
    ]
    assert found[0][2].startswith(f"3 x ltx-shards encode {data.table} ")
    assert found[2][2].startswith(f"16 x python -m dist_trainer.train {config.output_dir}/snapshots/")
    assert not Path(config.output_dir).exists()


def test_the_scripts_of_all_stages_are_shown_where_asked(
    config: RunConfig, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = typed(config, data, monkeypatch, capsys, "--scripts")
    waits = [line for line in printed if "--dependency" in line]
    assert [line.partition("afterok:")[2] for line in waits] == ["PREPARE", "DOCTOR", "TRAIN"]
    assert printed.count("#!/bin/bash") == 4
    assert not Path(config.output_dir).exists()
