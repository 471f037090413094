from __future__ import annotations

import json
import threading

import torch.distributed as torch_dist

from dist_trainer.watch.beat import Beat, beats_of, behind, without_beats


def told(store: torch_dist.Store, rank: int, beat: Beat) -> None:
    store.set(f"beat/{rank}", json.dumps(beat))


def test_beats_are_known_when_all_ranks_have_told_one() -> None:
    store = torch_dist.HashStore()
    told(store, 1, Beat(marks=3))
    assert beats_of(store, 2) == {}
    told(store, 0, Beat(marks=4, ending=True))
    assert beats_of(store, 2) == {0: Beat(marks=4, ending=True), 1: Beat(marks=3)}


def test_a_rank_whose_heart_does_not_beat_is_found_and_one_whose_heart_does_is_not() -> None:
    store = torch_dist.HashStore()
    for rank in range(3):
        told(store, rank, Beat(told=1))
    later = threading.Timer(0.1, told, (store, 1, Beat(told=2)))
    later.start()
    assert without_beats(store, 3, own=0, seconds=0.5) == {2: Beat(told=1)}


def test_ranks_with_fewer_marks_than_others_are_behind() -> None:
    beats = {0: Beat(marks=5), 1: Beat(marks=4), 2: Beat(marks=5)}
    assert behind(beats) == {1: Beat(marks=4)}
    assert behind({0: Beat(marks=5), 2: Beat(marks=5)}) == {}
    assert behind({}) == {}
