"""Uploading an export to the hub. It may fail as often as it likes: all of it lies in the run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from dist_trainer.checkpoints.kept import complete_steps, name_of, steps_there
from dist_trainer.config import RunConfig, load
from dist_trainer.exporting.export import COMFYUI, export, is_exported
from dist_trainer.exporting.facts import read_facts
from dist_trainer.hub.access import ask, reason
from dist_trainer.hub.card import Shown, card
from dist_trainer.hub.curves import picture
from dist_trainer.limit import limited
from dist_trainer.model.family import LORA_FILE
from dist_trainer.rundir import RunFolder, write_text
from dist_trainer.stop import Requests, heeding
from dist_trainer.validation.videos import videos
from dist_trainer.watch import progress
from shards.atomic import replacing
from shards.errors import InputError

PUSH_S = 6 * 3600.0
_CURVES, _SAMPLES = "curves.png", "samples"
# Of an export's folder: merged models and whole pipelines stay at home.
_PUSHED = ["README.md", _CURVES, f"{_SAMPLES}/*", LORA_FILE, f"{COMFYUI}/*", "transformer/*"]


def push(
    root: Path,
    steps: int | None = None,
    repository: str | None = None,
    limit_s: float = PUSH_S,
    heed: Callable[[], None] = progress.moved,
) -> str:
    """Upload the export of a step (None: the newest) with its model card; exports first where that is not done yet.

    `repository`: by default the config's hub.hub_model_id. Returns the repository's address. Raises InputError, in
    one line, for whatever keeps it from being done within `limit_s` seconds; what `heed` raises meanwhile is such.
    """
    run = RunFolder(root)
    if not run.config.is_file():
        raise InputError(f"{root}: no config.yaml; name a run's output folder")
    config = load(run.config)
    repository = repository or config.hub.hub_model_id
    if not repository:
        raise InputError(
            "hub.hub_model_id: the run's config names no repository; give one with --to owner/name"
        )
    step, folder = _exported(config, run, steps)
    answer = ask(repository, config.hub.private)
    if answer.why:
        raise InputError(f"hub: {repository}: {answer.why}")
    _dress(folder, run, config, repository, step)
    return _upload(folder, repository, step, limit_s, heed)


def push_end(config: RunConfig, folder: RunFolder, requests: Requests) -> str:
    """Upload at the end of a run, where the config asks for it; what came of it, in a line, or nothing.

    It is not waited for by a stop: the run is complete.
    """
    if not config.hub.push_to_hub:
        return ""
    try:
        return f"uploaded to {push(folder.root, heed=heeding(requests))}"
    except Exception as error:  # whatever it is, the run has ended well
        return f"warning: {reason(error)}; the run is complete, and `ltx-train push {folder.root}` uploads it"


def _exported(config: RunConfig, run: RunFolder, steps: int | None) -> tuple[int, Path]:
    """The step to push, and the folder of its export."""
    there = [*complete_steps(run.checkpoints), *steps_there(run.exports)]
    if steps is None and not there:
        raise InputError(f"{run.root}: neither a checkpoint nor an export yet")
    step = max(there) if steps is None else steps
    folder = run.exports / name_of(step)
    if not is_exported(config, run, step, "diffusers"):
        export(run.root, step)
    return step, folder


def _dress(folder: Path, run: RunFolder, config: RunConfig, repository: str, step: int) -> None:
    """Put README.md, curves and sample videos beside the weights."""
    curves = picture(run, step)
    if curves:
        with replacing(folder / _CURVES) as file:
            file.write(curves)
    shown = Shown(_CURVES if curves else None, _copy_samples(folder / _SAMPLES, run, config, step))
    state = run.read_state()
    continued = bool(state and state.started_from and state.started_from["kind"] == "full")
    write_text(folder / "README.md", card(config, repository, step, read_facts(run), shown, continued))


def _copy_samples(folder: Path, run: RunFolder, config: RunConfig, step: int) -> list[tuple[str, str]]:
    """The newest sample videos up to a step, beside the weights: path in the repository, and prompt."""
    shutil.rmtree(folder, ignore_errors=True)
    made = [made for made in steps_there(run.samples) if made <= step]
    asked = config.validation
    shown = []
    for video in videos(asked.prompts, asked.videos_per_prompt, asked.video_dims[2]) if made else ():
        file = run.samples / name_of(made[-1]) / video.name
        if file.is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / file.name)
            shown.append((f"{_SAMPLES}/{file.name}", asked.prompts[video.prompt]))
    return shown


def _upload(folder: Path, repository: str, step: int, limit_s: float, heed: Callable[[], None]) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    # A run's log is no terminal.
    disable_progress_bars()
    api = HfApi()
    # What an earlier push left of the same kinds goes: an index of more files would go before a single one.
    kinds = [pattern for pattern in _PUSHED if any(folder.glob(pattern))]

    def work() -> None:
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Weights of step {step}",
            allow_patterns=_PUSHED,
            delete_patterns=kinds,
        )

    try:
        limited(work, limit_s, heed)
    except TimeoutError as error:
        raise InputError(
            f"hub: {repository}: the upload is not done after {limit_s / 60:g} minutes"
        ) from error
    except Exception as error:  # of the network, the hub, the disk: nothing that may end a run
        raise InputError(f"hub: {repository}: the upload failed: {reason(error)}") from error
    return f"{api.endpoint}/{repository}"
