from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.prepare.caption.cleaning import clean_caption


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("In the video, a cat sleeps.", "A cat sleeps."),
        ("In this short video clip, we see that a cat sleeps.", "A cat sleeps."),
        ("This video shows a cat. The video shows a dog.", "A cat. The video shows a dog."),
        ("the image depicts two cats", "Two cats"),
        ("These frames capture cats.", "Cats."),
        ("Caption: The clip features élan.", "Élan."),
        ("Caption: a cat", "A cat"),
        ("  A cat\n\nsleeps.\t", "A cat sleeps."),
        ("The video", "The video"),
        ("The scene is set in a forest.", "The scene is set in a forest."),
        ("In the video there is a cat.", "In the video there is a cat."),
        ("This video showsX", "This video showsX"),
        ("In the video,", ""),
    ],
)
def test_an_opening_that_says_nothing_goes(answer: str, caption: str) -> None:
    assert clean_caption(answer) == caption


@given(st.text())
def test_other_text_only_loses_white_space(text: str) -> None:
    if not text.lower().lstrip().startswith(("in ", "the ", "this ", "these ", "caption")):
        assert clean_caption(text) == " ".join(text.split())
