"""The body of the batch scripts (slurm/lib/run.sh) and the command before its ranks, with stand-ins for Slurm's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from launch.cli import main
from launch.ended.after import began
from tests.support.programs import stand_ins
from tests.support.runs import ROOT, tiny_config, write_config

SCONTROL = """case "$2" in
  hostnames) echo "$3" | tr , '\\n' ;;
  job) echo "JobId=7 JobState=RUNNING Reason=None Restarts=0 ExcNodeList=(null)" ;;
  node) ;;
  *) echo "$*" >> "$HERE/done" ;;
esac
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's environment; the folder of its stand-ins."""
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "node1,node2", "NTASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return stand_ins(tmp_path / "bin", monkeypatch, scontrol=SCONTROL)


def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `ltx-launch job-began` for the run in `tmp_path / "run"`."""
    config = write_config(tmp_path / "c.yaml", tiny_config(tmp_path, tmp_path, tmp_path / "run"))
    monkeypatch.setattr("sys.argv", ["ltx-launch", "job-began", str(config)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_ranks_are_counted_also_where_a_task_starts_several(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    assert begin(tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out == f"{run.root}\n"
    monkeypatch.setenv("LTX_RANKS_PER_TASK", "8")
    assert begin(tmp_path, monkeypatch) == 0
    assert [one["ranks"] for one in read_log(run.jobs)] == [2, 16]


def test_a_job_that_began_too_often_ends(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    for number in range(20):
        began(run.root, ["node1"], 2, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(number)})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "20")
    assert begin(tmp_path, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: job 7 began 20 times")
    assert said.err.count("\n") == 1
    assert read_log(run.jobs)[-1]["event"] == "ended"


def test_a_job_that_got_a_node_known_as_bad_comes_back_on_others(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    began(run.root, ["node2", "node3"], 2, {"SLURM_JOB_ID": "5"})
    append(run.bad_nodes, {"job": "5", "restart": 0, "host": "node3"})
    assert begin(tmp_path, monkeypatch) == 0
    capsys.readouterr()
    append(run.bad_nodes, {"job": "5", "restart": 0, "host": "node2"})
    assert begin(tmp_path, monkeypatch) == 85
    said = capsys.readouterr()
    assert said.out == ""
    assert str(run.bad_nodes) in said.err
    done = (job / "done").read_text().splitlines()
    assert done == ["requeue 7", "update JobId=7 ExcNodeList=node2,node3"]


def test_deepspeed_s_launcher_is_one_task_of_each_node(job: Path) -> None:
    def script(tasks: int) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{job}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
        environ |= {
            "SLURM_NTASKS": str(tasks),
            "SLURM_JOB_NUM_NODES": "2",
            "LTX_HOST_PYTHON": str(job / "host"),
        }
        return subprocess.run(
            ["bash", "slurm/deepspeed.sh", "c.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=environ,
        )

    with pytest.MonkeyPatch().context() as context:
        stand_ins(job, context, host="exit 3")
        for tasks in (16, 1):
            done = script(tasks)
            assert done.returncode == 2
            assert done.stderr.startswith(f"error: {tasks} tasks on 2 nodes: ")
            assert "--ntasks-per-node=1" in done.stderr
            assert done.stderr.count("\n") == 1
        assert script(2).returncode == 3, "it goes on"


def test_ranks_are_of_the_container_and_what_asks_slurm_is_outside(job: Path, tmp_path: Path) -> None:
    def body(**more: str) -> str:
        environ = {"PATH": f"{job}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
        environ |= {"SLURM_JOB_NODELIST": "node1,node2", "SLURM_NTASKS": "2", "LTX_PYTHON": "in_a_box"}
        done = subprocess.run(
            ["bash", "-c", "source slurm/lib/run.sh; train c.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**environ, "LTX_HOST_PYTHON": str(job / "host"), **more},
        )
        assert done.returncode == 85, done.stderr
        return (job / "said").read_text()

    (tmp_path / "run" / "logs").mkdir(parents=True)
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        stand_ins(
            job,
            context,
            srun='echo "$* ${SRUN_CPUS_PER_TASK:-none} $OMP_NUM_THREADS $LTX_JOB_ENDS_AT" > "$HERE/said"; exit 3',
            squeue='[ "$SLURM_TIME_FORMAT" = standard ] && echo 2030-01-01T00:00:00 || echo soon',
            host=f'case $3 in job-began) echo "{tmp_path}/run" ;; job-ended) exit $((82 + $5)) ;; esac',
        )
    said = body(SLURM_TIME_FORMAT="relative").split()
    assert said[-7:-3] == ["in_a_box", "-m", "dist_trainer.train", "c.yaml"]
    assert said[-3:-1] == ["none", "1"]
    assert said[-1].isdigit(), "when the job ends is known"
    assert body(SLURM_CPUS_PER_TASK="6").split()[-3:-1] == ["6", "6"]
    assert body(SLURM_CPUS_PER_GPU="4").split()[-3:-1] == ["none", "4"]
