from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dist_trainer.config import dump, load
from dist_trainer.exporting.export import Wanted, export
from dist_trainer.hub.push import push, push_end
from dist_trainer.model.family import LORA_FILE
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Requests
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.dist_trainer.exporting.test_export import change_config
from tests.support.forked import launch
from tests.support.hub_server import TOKEN, Hub, environ_of, hub_config, hub_server
from tests.support.runs import ROOT, environment


@pytest.fixture
def ic_lora(ic_lora: Path) -> Path:
    """With a sample video for its prompt "a"."""
    videos = ic_lora / "samples" / "step_000002"
    videos.mkdir(parents=True)
    (videos / "01_a.mp4").write_bytes(b"video")
    (ic_lora / "samples" / "step_000009").mkdir()
    return ic_lora


def test_a_push_brings_weights_card_curves_and_videos(hub: Hub, ic_lora: Path) -> None:
    assert push(ic_lora, repository="me/mine") == f"{hub.endpoint}/me/mine"
    folder, files = ic_lora / "exports" / "step_000002", hub.repositories["me/mine"]
    comfyui = "comfyui/ic_lora_step_000002.safetensors"
    assert files.keys() == {"README.md", "curves.png", "samples/01_a.mp4", LORA_FILE, comfyui}
    assert files[LORA_FILE] == (folder / LORA_FILE).read_bytes()
    assert files["samples/01_a.mp4"] == b"video"
    assert b"base = " in files["README.md"]
    assert Image.open(io.BytesIO(files["curves.png"])).size == (990, 550)


def test_what_is_not_exported_yet_is_exported_and_merged_models_stay_at_home(hub: Hub, ic_lora: Path) -> None:
    export(ic_lora, wanted=Wanted(merge=True, parts="link"))
    (ic_lora / "exports" / "step_000002" / LORA_FILE).unlink()
    push(ic_lora, 2, "me/mine")
    assert LORA_FILE in hub.repositories["me/mine"]
    assert not [path for path in hub.repositories["me/mine"] if "merged" in path]


def test_a_full_models_folder_is_pushed(hub: Hub, finished_runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_runs / "full", tmp_path / "full"))
    push(run, repository="team/model")
    files = hub.repositories["team/model"]
    assert {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"} < files.keys()
    # An export of another checkpoint of that step is made again.
    weights = run / "exports" / "step_000002" / "transformer"
    os.utime(weights, (0, 0))
    push(run, repository="team/model")
    assert weights.stat().st_mtime > 0


def test_what_an_earlier_push_left_goes_and_what_is_not_ours_stays(hub: Hub, ic_lora: Path) -> None:
    old, others = "comfyui/ic_lora_step_000001.safetensors", {"transformer/config.json", "notes.txt"}
    hub.repositories["me/mine"] = dict.fromkeys([old, LORA_FILE, *others], b"before")
    push(ic_lora, repository="me/mine")
    files = hub.repositories["me/mine"]
    assert old not in files
    assert others < files.keys()
    assert files[LORA_FILE] != b"before"


def test_whatever_goes_wrong_at_the_end_of_a_run_is_a_warning(
    hub: Hub, ic_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a fault\nof two lines")

    monkeypatch.setattr("dist_trainer.hub.push.picture", fail)
    config = load(ic_lora / "config.yaml", ["hub.push_to_hub=true", "hub.hub_model_id=me/mine"])
    (ic_lora / "config.yaml").write_text(dump(config))
    line = push_end(config, RunFolder(ic_lora), Requests(ic_lora, is_main=True))
    assert line.startswith("warning: ")
    assert "a fault" in line
    assert "\n" not in line


def test_a_stop_does_not_wait_for_an_upload(hub: Hub, ic_lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *_, **__: ended.wait(280))
    monkeypatch.setattr("dist_trainer.stop._PATIENCE_S", 0.0)
    config = load(ic_lora / "config.yaml", ["hub.push_to_hub=true", "hub.hub_model_id=me/mine"])
    (ic_lora / "config.yaml").write_text(dump(config))
    (ic_lora / "STOP").touch()
    line = push_end(config, RunFolder(ic_lora), Requests(ic_lora, is_main=True))
    ended.set()
    assert f"{ic_lora / 'STOP'} is there; the run is complete" in line


def test_a_run_on_other_whole_weights_names_no_base(hub: Hub, ic_lora: Path) -> None:
    change_config(ic_lora, "model", model_source="LTXV_2B_0.9.5")
    push(ic_lora, repository="me/mine")
    assert b"base_model:" in hub.repositories["me/mine"]["README.md"]
    state = json.loads((ic_lora / "state.json").read_text())
    state["started_from"] = {"kind": "full", "place": "/other/transformer"}
    (ic_lora / "state.json").write_text(json.dumps(state))
    push(ic_lora, repository="me/mine")
    assert b"base_model:" not in hub.repositories["me/mine"]["README.md"]


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        ({"/api/models/me/mine/preupload": 500}, "the upload failed: .*500"),
        ({"/large": 403}, "the upload failed: .*Error while uploading"),
        ({"/api/models/me/mine/commit": 507}, "the upload failed: .*507"),
        ({"/api/repos": 403}, "403"),
        ({"/api/whoami": 401}, "Invalid user token"),
    ],
)
def test_a_failed_push_is_one_line_and_may_be_done_again(
    hub: Hub, ic_lora: Path, refuse: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library's pauses between its tries
    hub.refuse = refuse
    with pytest.raises(InputError, match=f"hub: me/mine: .*{said}") as error:
        push(ic_lora, repository="me/mine")
    assert "\n" not in str(error.value)
    hub.refuse = {}
    push(ic_lora, repository="me/mine")
    assert LORA_FILE in hub.repositories["me/mine"]


def test_a_hub_that_does_not_answer_keeps_nobody(
    ic_lora: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        assert ended.wait(280)

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", hang)
    with pytest.raises(InputError, match="is not done after"):
        push(ic_lora, repository="me/mine", limit_s=0.1)
    ended.set()


def test_a_run_that_names_no_repository_asks_for_one(ic_lora: Path) -> None:
    with pytest.raises(InputError, match="give one with --to owner/name"):
        push(ic_lora)


def test_the_command_pushes(ic_lora: Path) -> None:
    command = [sys.executable, "-m", "dist_trainer", "push", str(ic_lora), "--to", "me/mine"]
    with hub_server() as hub:
        done = subprocess.run(
            command, env=environment(**environ_of(hub)), cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == f"{hub.endpoint}/me/mine"
        assert LORA_FILE in hub.repositories["me/mine"]


def test_a_run_without_a_hub_is_complete_and_is_pushed_later(
    hub: Hub, model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # The tests' processes are told that there is no network.
    config = hub_config(model_folder, paired_dataset.root, run)
    ended = launch(1, config, logs=tmp_path / "logs", environ=[{"HF_TOKEN": TOKEN}])
    assert ended.codes == [0], str(ended)
    printed = ended.stdout[0].splitlines()
    told = [line for line in printed if "ltx-train push" in line]
    assert told[0].startswith("note: hub: me/mine: the hub cannot be reached: ")
    assert told[1].startswith("warning: hub: me/mine: ")
    assert told[1].endswith(f"`ltx-train push {run}` uploads it")
    assert len(told) == 2
    assert (run / "DONE").is_file()
    uploaded = push_end(load(run / "config.yaml"), RunFolder(run), Requests(run, is_main=True))
    assert uploaded == f"uploaded to {hub.endpoint}/me/mine"
    assert LORA_FILE in hub.repositories["me/mine"]
