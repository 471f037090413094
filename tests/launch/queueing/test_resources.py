"""What a job asks of Slurm: times as sbatch reads them, and nothing that would be another line of the script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.queueing.resources import Resources, gpus, minutes
from shards.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:00", 90),
        ("1:30", 2),
        ("24:00:00", 1440),
        ("0:00:01", 1),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("2-12:30:30", 3631),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "a day", "1:2:3:4", "-5", "1-", "24h", "1.5"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--time"):
        minutes(text)


@given(st.integers(1, 10**6))
def test_any_number_of_seconds_is_rounded_up_to_minutes(seconds: int) -> None:
    hours, rest = divmod(seconds, 3600)
    text = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    assert 0 <= minutes(text) * 60 - seconds < 60


def test_there_is_one_rank_for_each_gpu() -> None:
    assert Resources(nodes=4, gpus_per_node=8).ranks == 32
    assert Resources(nodes=4, gpus_per_node=0).ranks == 4
    assert Resources(nodes=4, gpus_per_node=0, tasks_per_node=3).ranks == 12
    with pytest.raises(InputError, match="--tasks-per-node 3"):
        Resources(gpus_per_node=8, tasks_per_node=3)


def test_gpus_are_read_as_sbatch_reads_them() -> None:
    assert gpus("8") == (8, None)
    assert gpus("h100:4") == (4, "h100")
    for text in ("", "h100", "h100:", "-1", "a b:1", "a:b:1", "8\n#"):
        with pytest.raises(InputError, match="--gpus-per-node"):
            gpus(text)


@pytest.mark.parametrize("name", ["partition", "account", "qos", "constraint", "exclude", "dependency"])
@given(end=st.sampled_from("\n\r\0\x0b\x0c\x1b\x7f"))
def test_a_value_is_one_line(name: str, end: str) -> None:
    with pytest.raises(InputError, match=f"--{name}"):
        Resources(**{name: f"a{end}touch b"})


@pytest.mark.parametrize("word", ["nodes", "array", "output", "requeue", "time"])
def test_what_has_an_option_of_its_own_is_not_set_twice(word: str) -> None:
    with pytest.raises(InputError, match=f"--sbatch {word}"):
        Resources(sbatch={word: "1"})


@pytest.mark.parametrize(
    ("word", "value"), [("Mem", "0"), ("mem;ls", "0"), ("", "0"), ("mem", "0\n#"), ("-x", "1")]
)
def test_words_that_are_no_option_are_refused(word: str, value: str) -> None:
    with pytest.raises(InputError, match="--sbatch"):
        Resources(sbatch={word: value})


def test_a_job_that_would_save_at_once_is_refused() -> None:
    with pytest.raises(InputError, match="--lead"):
        Resources(time="5", lead_s=300)


def test_a_log_gives_back_the_same_resources() -> None:
    asked = Resources(
        nodes=3, gpus_per_node=2, qos="high", sbatch={"mem": "0", "exclusive": ""}, site="/a/site.sh"
    )
    assert Resources.read(asked.record()) == asked
    assert Resources.read({**asked.record(), "of_a_later_version": 1}) == asked
