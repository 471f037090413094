"""Which rank makes which video."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.validation.videos import share, videos


@given(st.integers(1, 40), st.integers(1, 17))
def test_each_file_is_made_once_and_all_ranks_have_as_many_turns(count: int, ranks: int) -> None:
    names = [str(number) for number in range(count)]
    shares = [share(names, ranks, rank) for rank in range(ranks)]
    assert {len(own) for own in shares} == {-(-count // ranks)}
    assert sorted(name for own in shares for name in own if name) == sorted(names)


def test_files_are_named_by_number_and_words_and_nothing_in_a_prompt_leaves_the_folder() -> None:
    made = videos(["A dog, running!", "../../etc/passwd", "日本", "x" * 100], per_prompt=1, frames=9)
    assert [video.name for video in made] == [
        "01_a-dog-running.mp4",
        "02_etc-passwd.mp4",
        "03.mp4",
        f"04_{'x' * 40}.mp4",
    ]


def test_copies_are_counted_and_a_single_frame_is_a_picture() -> None:
    assert [tuple(video) for video in videos(["a"], per_prompt=2, frames=1)] == [
        (0, 0, "01_a_1.png"),
        (0, 1, "01_a_2.png"),
    ]
