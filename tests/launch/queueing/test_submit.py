"""Runs into the queue: what sbatch is handed, what the run's folder keeps, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from dist_trainer.config import RunConfig, load
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from launch.cli import main
from launch.cli.slurm import say_kept_away
from launch.queueing import queue
from launch.queueing.resources import Resources
from launch.queueing.submit import prepare, submit, submit_all
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.programs import SBATCH, stand_ins
from tests.support.runs import tiny_config, write_config

CPU = Resources(nodes=2, gpus_per_node=0, cpus_per_task=3)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], RunConfig]:
    """The config of a run by its folder's name."""
    return lambda name: load(
        write_config(tmp_path / "c.yaml", tiny_config(tmp_path, tmp_path, tmp_path / "a run" / name))
    )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's commands; the folder in which sbatch keeps the scripts."""
    return stand_ins(tmp_path / "bin", monkeypatch, sbatch=SBATCH, srun="exit 1", squeue="exit 1")


def lines(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines()]


@pytest.mark.parametrize("name", ["r\ntouch hit\n#", "r\x7f", "50%"])
def test_a_folder_that_the_script_would_misread_is_refused(
    config: Callable[[str], RunConfig], tmp_path: Path, name: str
) -> None:
    order = prepare(
        [config("r").model_copy(update={"output_dir": tmp_path / name})], CPU, tmp_path / name
    ).order
    with pytest.raises(InputError, match="choose another folder"):
        queue.script(order)


def test_the_script_asks_for_the_resources(config: Callable[[str], RunConfig], tmp_path: Path) -> None:
    asked = Resources(
        nodes=4,
        gpus_per_node=8,
        time="2-00:00:00",
        partition="gpu",
        account="me",
        qos="high",
        constraint="h100",
        exclude="node3",
        dependency="afterok:12",
        sbatch={"mem": "0", "exclusive": ""},
    )
    found = lines(queue.script(prepare([config("r")], asked, tmp_path / "a run" / "r").order))
    for line in (
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
        "--time=2880",
        "--partition=gpu",
        "--account=me",
        "--qos=high",
        "--constraint=h100",
        "--exclude=node3",
        "--dependency=afterok:12",
        "--kill-on-invalid-dep=yes",
        "--mem=0",
        "--exclusive",
        "--requeue",
        "--signal=USR2@300",
        "--open-mode=append",
        "--job-name=ltx-r",
    ):
        assert line in found
    assert not (tmp_path / "a run").exists(), "nothing is written"


def test_on_cpus_no_gpu_is_asked_for(config: Callable[[str], RunConfig], tmp_path: Path) -> None:
    found = queue.script(prepare([config("r")], CPU, tmp_path / "r").order)
    assert "--gpus" not in found
    assert "--ntasks-per-node=1" in lines(found)[3:12]
    assert "--cpus-per-task=3 env" in found, "srun is told too"


def test_what_is_shown_is_what_is_handed_in(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path
) -> None:
    root = tmp_path / "a run" / "r"
    for names in (["r"], ["r/1", "r/2", "r/3"]):
        configs = [config(name) for name in names]
        shown = queue.script(prepare(configs, CPU, root, at_once=2).order)
        job = submit_all(configs, CPU, root, at_once=2)[0].job.partition("_")[0]
        assert (slurm / f"{job}.job").read_text() == shown
        subprocess.run(["bash", "-n"], input=shown, text=True, check=True)
        assert ("--array=0-2%2" in lines(shown)) == (len(names) > 1)


def test_a_run_knows_its_job_and_what_was_asked_for(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path
) -> None:
    asked = Resources(nodes=2, gpus_per_node=0, dependency="afterok:1")
    queued = submit(config("r"), asked)
    assert queued.run == tmp_path / "a run" / "r"
    (record,) = read_log(RunFolder(queued.run).jobs)
    assert (record["event"], record["job"], record["ranks"]) == ("submitted", "100", 2)
    assert Resources.read(record["resources"]) == Resources(nodes=2, gpus_per_node=0), (
        "the other job is over then"
    )


def test_each_run_of_a_sweep_knows_its_task(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path
) -> None:
    queued = submit_all([config("s/1"), config("s/2")], CPU, tmp_path / "a run" / "s")
    assert [one.job for one in queued] == ["100_0", "100_1"]
    for one in queued:
        assert read_log(RunFolder(one.run).jobs)[0]["job"] == one.job
        assert len(list((one.run / "snapshots").iterdir())) == 1


def test_the_job_holds_paths_alone_and_no_limit_of_time_outs(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path
) -> None:
    queued = submit(config("r"), CPU)
    kept = DelayedSubmission.load(queued.run / "logs" / "submitit" / "100_submitted.pkl")
    snapshot = Path(kept.function.snapshot)
    assert kept.function.run == str(queued.run)
    assert load(snapshot / "config.yaml").output_dir == queued.run
    assert kept._timeout_countdown >= 10**6
    again = kept.function.checkpoint()
    assert again.function == kept.function


def test_a_relative_folder_is_meant_from_where_the_call_was(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(write_config(tmp_path / "c.yaml", tiny_config(tmp_path, tmp_path, Path("runs/r"))))
    queued = submit(found, CPU)
    assert queued.run == tmp_path / "runs" / "r"
    assert f"--chdir={tmp_path}" in lines((slurm / "100.job").read_text())
    (kept,) = (queued.run / "snapshots").iterdir()
    assert load(kept / "config.yaml").output_dir == queued.run


def test_bad_nodes_of_the_run_are_left_out(
    config: Callable[[str], RunConfig],
    slurm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "a run" / "r"
    append(RunFolder(run).jobs, {"event": "began", "job": "1", "nodes": ["node2", "node3", "node7"]})
    for host in ("node7", "node2", "node7"):
        append(RunFolder(run).bad_nodes, {"job": "1", "host": host, "cause": "test"})
    asked = Resources(gpus_per_node=0, exclude="node9")
    prepared = prepare([config("r")], asked, run)
    assert "--exclude=node9,node2,node7" in lines(queue.script(prepared.order))
    assert prepared.asked == asked
    # sbatch would refuse all of them because of one.
    stand_ins(slurm, monkeypatch, scontrol='echo "NodeName=node2"; echo "Node node7 not found"; exit 1')
    assert "--exclude=node9,node2" in lines(queue.script(prepare([config("r")], asked, run).order))
    say_kept_away(run)
    said = capsys.readouterr().out
    assert said.startswith("it keeps away from node2, where its trial failed")
    assert said.endswith(", and need not keep away from node7, not in the cluster any more\n")


def test_the_file_of_the_cluster_is_kept_and_read_first(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.sh"
    site.write_text("PYTHON=(in_a_box python)\nSRUN=(--container-image=a)\n")
    queued = submit(config("r"), Resources(gpus_per_node=0, site=str(site)))
    (kept,) = (queued.run / "snapshots").iterdir()
    assert (kept / "site.sh").read_text() == site.read_text()
    # The script itself, with srun as its stand-in prints its words.
    stand_ins(slurm, monkeypatch, srun='printf "%s\\n" "$@"')
    words = said(slurm, slurm / "100.job")
    assert words[0] == "--container-image=a"
    assert "--export=ALL" in words, "also where sbatch was told to hand on nothing"
    assert words[words.index("env") + 1 :][:5] == [f"PYTHONPATH={kept}", "in_a_box", "python", "-P", "-u"]
    site.write_text("")
    monkeypatch.delenv("LTX_PYTHON", raising=False)
    submit(config("r"), Resources(gpus_per_node=0, site=str(site), dependency="afterany:100"))
    words = said(slurm, slurm / "101.job")
    assert words[0] == "--unbuffered"
    assert words[words.index("env") + 2 :][:2] == [sys.executable, "-P"]
    with pytest.raises(InputError, match="--site"):
        prepare([config("r")], Resources(gpus_per_node=0, site=str(tmp_path / "none.sh")), tmp_path / "r")


def test_what_comes_after_the_tasks_is_called_outside_their_container(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site.sh"
    site.write_text("PYTHON=(in_a_box python)\n")
    host = tmp_path / "host_python"
    host.write_text('#!/bin/bash\necho "host: $*"; exit 85\n')
    host.chmod(0o755)
    queued = submit(config("r"), Resources(gpus_per_node=0, site=str(site)))
    done = subprocess.run(  # srun is a stand-in that ends with 1
        ["bash", str(slurm / "100.job")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{slurm}:/usr/bin:/bin", "LTX_HOST_PYTHON": str(host)},
    )
    assert done.stdout == f"host: -P -m launch job-left {queued.run} 1\n"
    assert done.returncode == 85


def test_gpus_may_be_of_a_kind(config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path) -> None:
    asked = Resources(nodes=2, gpus_per_node=4, gpu_type="h100")
    queued = submit(config("r"), asked)
    assert "--gpus-per-node=h100:4" in lines((slurm / "100.job").read_text())
    (record,) = read_log(RunFolder(queued.run).jobs)
    assert (record["ranks"], Resources.read(record["resources"])) == (8, asked)


def test_a_run_that_is_queued_is_not_queued_again(
    config: Callable[[str], RunConfig], slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(config("r"), CPU)
    submit(config("r"), CPU)  # Slurm does not know the first any more
    stand_ins(slurm, monkeypatch, squeue='echo "101|101|RUNNING|None|||node1"')
    with pytest.raises(InputError, match="its job 101 is running"):
        submit(config("r"), CPU)
    append(RunFolder(Path(config("r").output_dir)).jobs, {"event": "began", "job": "7"})  # of a batch script
    stand_ins(slurm, monkeypatch, squeue='echo "7|7|PENDING|Priority||||"')
    with pytest.raises(InputError, match="its job 7 is pending"):
        submit(config("r"), CPU)
    stand_ins(
        slurm, monkeypatch, squeue='echo "squeue: error: Socket timed out on send/recv operation" >&2; exit 1'
    )
    with pytest.raises(InputError, match="timed out"):
        submit(config("r"), CPU)
    submit(config("r"), Resources(gpus_per_node=0, dependency="afterany:101"))


def test_what_sbatch_says_is_said_once_and_a_refused_run_leaves_nothing(
    config: Callable[[str], RunConfig],
    slurm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = ("error: invalid partition: nope", "error: submission failed: invalid partition")
    stand_ins(slurm, monkeypatch, sbatch="".join(f'echo "sbatch: {one}" >&2\n' for one in said) + "exit 1")
    once = r"^sbatch: invalid partition: nope; submission failed: invalid partition$"
    with pytest.raises(InputError, match=once):
        submit(config("r"), CPU)
    with pytest.raises(InputError, match=once):
        submit_all([config("s/1"), config("s/2")], CPU, tmp_path / "a run" / "s")
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "a run").exists()


def test_a_refusal_leaves_what_was_there_before(
    config: Callable[[str], RunConfig], slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(config("r"), CPU)
    before = sorted((tmp_path / "a run").rglob("*"))
    stand_ins(slurm, monkeypatch, sbatch='echo "sbatch: error: no" >&2; exit 1')
    for changed in (config("r"), config("r").model_copy(update={"seed": 5})):
        with pytest.raises(InputError, match="no"):
            submit(changed, CPU)
        assert sorted((tmp_path / "a run").rglob("*")) == before


def test_without_slurm_nothing_is_queued(
    config: Callable[[str], RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--dry-run"):
        submit(config("r"), CPU)
    assert "#SBATCH" in queue.script(prepare([config("r")], CPU, tmp_path / "r").order)


def test_inside_a_job_its_marks_are_left_out(
    config: Callable[[str], RunConfig], slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "7")
    stand_ins(slurm, monkeypatch, sbatch=f"env > $HERE/env\n{SBATCH}")
    submit(config("r"), CPU)
    seen = {line.partition("=")[0] for line in (slurm / "env").read_text().splitlines()}
    assert "SLURM_CONF" in seen
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS"} & seen


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `ltx-launch slurm WORDS`."""
    monkeypatch.setattr("sys.argv", ["ltx-launch", "slurm", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def path(model_folder: Path, paired_dataset: Dataset, tmp_path: Path) -> str:
    """A config on disk, of a run in `tmp_path`/run."""
    described = tiny_config(model_folder, paired_dataset.root, tmp_path / "run", deepspeed={"config": {}})
    return str(write_config(tmp_path / "c.yaml", described))


def test_what_could_not_run_is_refused_before_it_is_queued(
    slurm: Path,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = "--sweep=batching.max_tokens_per_pack=100,3"
    assert typed(monkeypatch, path, "--gpus-per-node=0", sweep) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: max_tokens_per_pack=3: 30 of 30 samples have more tokens")
    assert not list(slurm.glob("*.job"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_config_plan_and_script_and_queues_nothing(
    slurm: Path,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert typed(monkeypatch, path, "seed=11", "--gpus-per-node=0", "--nodes=2", "--dry-run") == 0
    printed = capsys.readouterr().out
    for part in ("\nseed: 11\n", "# 20 steps", "# a step: 7.0 samples", "\n#SBATCH --nodes=2\n"):
        assert part in printed
    assert not list(slurm.glob("*.job"))
    assert not (tmp_path / "run").exists()
    assert typed(monkeypatch, path, "--gpus-per-node=0") == 0
    assert f"job 100: {tmp_path / 'run'}\n" in capsys.readouterr().out


def said(slurm: Path, script: Path) -> list[str]:
    """What a batch script prints among the stand-ins, line by line."""
    path = {"PATH": f"{slurm}:/usr/bin:/bin"}
    return subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, check=False, env=path
    ).stdout.splitlines()
