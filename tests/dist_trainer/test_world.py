from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.world import World, address, discover, presumed
from shards.errors import InputError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
DEEPSPEED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "CROSS_RANK": "0"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        (TORCHRUN, World(5, 8, 1)),
        (DEEPSPEED, World(3, 4, 3)),
        (SRUN, World(6, 8, 2)),
        ({}, World(0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, World(0, 1, 0)),
        # A launcher's own variables stand above those of the Slurm step that started it.
        ({**SRUN, **TORCHRUN}, World(5, 8, 1)),
        # The batch script itself is no rank, though Slurm gives it a task's variables.
        (BATCH_SCRIPT, World(0, 1, 0)),
    ],
    ids=["torchrun", "deepspeed", "srun", "alone", "one", "torchrun-in-srun", "batch-script"],
)
def test_a_rank_finds_its_place_from_what_its_launcher_sets(environ: dict[str, str], world: World) -> None:
    assert discover(environ) == world
    assert world.is_main == (world.rank == 0)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RANK": "1"}, r"RANK=1, WORLD_SIZE=\(unset\)"),
        ({"WORLD_SIZE": "2"}, r"RANK=\(unset\), WORLD_SIZE=2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, r"LOCAL_RANK=\(unset\)"),
        ({**TORCHRUN, "RANK": "first"}, "RANK=first"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, r"SLURM_NTASKS=\(unset\)"),
        ({**SRUN, "SLURM_LOCALID": ""}, "SLURM_LOCALID="),
    ],
)
def test_a_half_set_environment_is_refused_by_name(environ: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        discover(environ)


@pytest.mark.parametrize(
    ("environ", "rank"),
    [({"RANK": "3"}, 3), ({"RANK": "first"}, 0), ({"SLURM_PROCID": "2"}, 2), ({"WORLD_SIZE": "2"}, 0)],
)
def test_one_rank_complains_of_a_half_set_environment(environ: dict[str, str], rank: int) -> None:
    assert presumed(environ).rank == rank
    assert presumed(environ).is_main == (rank == 0)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` of our own, first on the PATH; it writes down what it was asked."""
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nprintf "node07\\nnode08\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return script


def test_the_master_is_where_the_launcher_says() -> None:
    environ = {"MASTER_ADDR": "node01", "MASTER_PORT": "29500"}
    assert address(environ, World(1, 2, 1)) == ("node01", 29500)


def test_alone_needs_no_master() -> None:
    assert address({}, World(0, 1, 0)) == ("127.0.0.1", 0)


def test_under_srun_the_master_is_the_jobs_first_node(scontrol: Path) -> None:
    environ = {"SLURM_JOB_ID": "45678", "SLURM_JOB_NODELIST": "node[07-08]"}
    assert address(environ, World(1, 2, 0)) == ("node07", 29678)
    assert (scontrol.parent / "asked").read_text() == "show hostnames node[07-08]\n"


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\n"], ids=["fails", "says-nothing"])
def test_a_node_list_nobody_can_read_is_named(scontrol: Path, script: str) -> None:
    scontrol.write_text(script)
    with pytest.raises(InputError, match=r"scontrol show hostnames node\[1-.*set MASTER_ADDR"):
        address({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]"}, World(0, 2, 0))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MASTER_ADDR": "node01"},
        {"MASTER_PORT": "29500"},
        {"MASTER_ADDR": "node01", "MASTER_PORT": "http"},
        {"MASTER_ADDR": "node01", "MASTER_PORT": "-1"},
        {"MASTER_ADDR": "node01", "MASTER_PORT": "70000"},
    ],
)
def test_a_half_set_master_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(InputError, match="MASTER_PORT"):
        address(environ, World(0, 2, 0))
