from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dist_trainer.config import load
from dist_trainer.hub.access import Answer, ask, check_hub
from shards.errors import InputError
from tests.support.gatherings import at_once, in_memory
from tests.support.hub_server import Hub, hub_config


def test_the_hub_is_asked_for_token_and_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("me/mine") == Answer()
    assert ask("me/mine") == Answer(), "a repository that is there is no hindrance"
    hub.role = "read"
    assert ask("me/mine") == Answer("the token may only read; make one that may write", final=True)
    hub.role = "write"
    assert ask("no/such/name").final
    hub.refuse = {"/api/repos": 403}
    assert ask("team/other").final
    hub.refuse = {"/api/whoami": 429}
    assert "rate limit" in ask("me/mine").why
    assert not ask("me/mine").final
    hub.refuse = {}
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert ask("me/mine").final
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    assert "hf auth login" in ask("me/mine").why


def test_a_hub_that_does_not_answer_is_one_that_cannot_be_reached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda _: ended.wait(280))
    answer = ask("me/mine", limit_s=0.1)
    ended.set()
    assert answer == Answer("the hub cannot be reached: no answer within 0.1 seconds")


def test_a_private_repository_is_made_and_a_public_one_refused(hub: Hub) -> None:
    assert ask("me/mine", private=True) == Answer()
    assert hub.private == {"me/mine"}
    assert ask("me/shown") == Answer()
    assert hub.private == {"me/mine"}
    assert ask("me/shown", private=True).final
    assert "hub.private" in ask("me/shown", private=True).why


def test_every_rank_hears_of_a_refusal_before_training(
    hub: Hub, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(hub_config(model_folder, tmp_path, tmp_path / "run"))
    hub.refuse = {"/api/repos": 403}
    for result in at_once(lambda gathering: check_hub(config, False, gathering), in_memory(3)):
        assert isinstance(result, InputError)
        assert "hub.hub_model_id: me/mine" in str(result)
    # A run that goes on is worth more than its upload, and so is one whose hub may come back.
    assert at_once(lambda gathering: check_hub(config, True, gathering), in_memory(2)) == [None, None]
    hub.refuse = {"/api/repos": 503}
    assert at_once(lambda gathering: check_hub(config, False, gathering), in_memory(2)) == [None, None]
    assert capsys.readouterr().out.count(f"`ltx-train push {tmp_path / 'run'}` can upload") == 2
