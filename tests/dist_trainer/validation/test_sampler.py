"""Sample videos of real runs: the same on any number of ranks, whole after a stop, and nothing to training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_trainer.stop import COME_BACK_CODE
from dist_trainer.validation.record import complete
from dist_trainer.validation.show import read
from shards.geometry import Scale
from shards.prepare.media.video import write_clip
from tests.support.audit import assert_same_run
from tests.support.datasets import write_dataset
from tests.support.forked import several, train
from tests.support.models import tiny_source
from tests.support.runs import lora_blocks, tiny_config, write_config
from tests.support.struck import Strike, strike

PROMPTS = ["a red square moves left", "a blue circle", "a green ring moves up"]
NAMES = ["01_a-red-square-moves-left.mp4", "02_a-blue-circle.mp4", "03_a-green-ring-moves-up.mp4"]
WIDTH, HEIGHT, FRAMES = 48, 32, 9
STEPS, INTERVAL = 4, 2
DENOISING = 3
VIDEOS = {
    "prompts": PROMPTS,
    "video_dims": [WIDTH, HEIGHT, FRAMES],
    "frame_rate": 12,
    "inference_steps": DENOISING,
    "interval": INTERVAL,
}

pytestmark = pytest.mark.timeout(900)


class Runs:
    """Runs of tiny configs, each in a folder of its own."""

    def __init__(self, root: Path, model: Path) -> None:
        grids = ((2, 2, 3), (3, 2, 2), (1, 2, 2))
        self.root, self._model = root, model
        self.dataset = write_dataset(
            root / "data",
            16,
            channels=8,
            text_width=48,
            grids=grids,
            references=grids,
            scale=Scale(4, 16),
            vae=tiny_source(),
        )

    def config(self, name: str, **blocks: Any) -> Path:
        merged = {
            "validation": VIDEOS,
            "batching": {"samples_per_step": 4},
            "checkpoints": {"interval": STEPS},
            **blocks,
        }
        merged["optimization"] = {"steps": STEPS, "learning_rate": 1e-3, **merged.get("optimization", {})}
        described = tiny_config(self._model, self.dataset.root, self.root / name, **merged)
        return write_config(self.root / f"{name}.yaml", described)

    def samples(self, name: str, step: int) -> dict[str, np.ndarray]:
        """Frames of the videos of a step by file name."""
        folder = self.root / name / "samples" / f"step_{step:06d}"
        return {path.name: read(path) for path in sorted(folder.glob("*.mp4"))}

    def record(self, name: str, step: int) -> dict[str, Any]:
        path = self.root / name / "samples" / f"step_{step:06d}" / "validation.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`two` and `one`: three prompts on so many ranks. On two ranks: `without` videos, `single` of one prompt, `both`:
    an IC-LoRA with first frames and references, two videos of each prompt and no guidance, and `neither` without."""
    made = Runs(tmp_path_factory.mktemp("videos"), model_folder)
    media = made.root / "media"
    media.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        clip = rng.integers(0, 255, (FRAMES + number, 40, 56, 3), dtype=np.uint8)
        write_clip(media / f"{number}.mp4", clip, 12)
        write_clip(media / f"{number}.png", clip[:1], 12)
    both = lora_blocks(reference=True)
    both["lora"] = {**both["lora"], "dropout": 0.2}
    both["validation"] = {
        **VIDEOS,
        "prompts": PROMPTS[:2],
        "images": [str(media / f"{number}.png") for number in range(2)],
        "reference_videos": [str(media / f"{number}.mp4") for number in range(2)],
        "videos_per_prompt": 2,
        "guidance_scale": 1.0,
        "interval": 100,
    }
    both["optimization"] = {"steps": 2}
    configs = [
        made.config("two"),
        made.config("without", validation={"interval": None}),
        made.config("single", validation={**VIDEOS, "prompts": PROMPTS[:1], "skip_initial_validation": True}),
        made.config("both", **both),
        made.config("neither", **{**both, "validation": {**both["validation"], "interval": None}}),
    ]
    several(2, *configs, logs=made.root / "logs_two")
    train(1, made.config("one"), logs=made.root / "logs_one", timeout_s=300)
    return made


def assert_alike(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """The same videos, but for the last bits of sums, which the codec may turn into a level or two."""
    assert ours.keys() == theirs.keys()
    for name, frames in ours.items():
        assert frames.shape == theirs[name].shape
        assert np.abs(frames.astype(int) - theirs[name].astype(int)).mean() < 0.5, name


def test_there_are_videos_before_the_first_step_at_each_interval_and_at_the_end(runs: Runs) -> None:
    folder = runs.root / "two" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000", "step_000002", "step_000004"]
    for step in (0, 2, 4):
        found = runs.samples("two", step)
        assert list(found) == NAMES
        assert {frames.shape for frames in found.values()} == {(FRAMES, HEIGHT, WIDTH, 3)}
        record = runs.record("two", step)
        assert record["complete"]
        assert record["prompts"] == dict(zip(NAMES, PROMPTS, strict=True))
    assert sorted(path.name for path in (runs.root / "single" / "samples").iterdir()) == [
        "step_000002",
        "step_000004",
    ]
    begun, ended = (runs.samples("two", step)[NAMES[0]].astype(int) for step in (0, 4))
    assert np.abs(begun - ended).mean() > 1
    assert np.abs(begun - runs.samples("two", 0)[NAMES[1]].astype(int)).mean() > 1


def test_videos_do_not_depend_on_the_number_of_ranks_or_of_prompts(runs: Runs) -> None:
    for step in (0, 2, 4):
        assert_alike(runs.samples("two", step), runs.samples("one", step))
    # One prompt on two ranks cut by ZeRO-3: the second rank has nothing to make, and keeps step.
    first = {NAMES[0]: runs.samples("two", 4)[NAMES[0]]}
    assert_alike(runs.samples("single", 4), first)


def test_training_does_not_notice_that_videos_are_made(runs: Runs) -> None:
    assert_same_run(runs.root / "two", runs.root / "without")
    # Dropout, which videos must not have, is there again after them.
    assert_same_run(runs.root / "both", runs.root / "neither")


def test_references_stand_beside_videos_that_begin_with_their_first_frames(runs: Runs) -> None:
    found = runs.samples("both", 0)
    assert list(found) == [
        f"{number:02d}_{words}_{copy}.mp4"
        for number, words in ((1, "a-red-square-moves-left"), (2, "a-blue-circle"))
        for copy in (1, 2)
    ]
    assert {frames.shape for frames in found.values()} == {(FRAMES, HEIGHT, 2 * WIDTH, 3)}
    left = {name: frames[:, :, :WIDTH].astype(int) for name, frames in found.items()}
    right = {name: frames[:, :, WIDTH:].astype(int) for name, frames in found.items()}
    one, again, other, _ = found
    assert np.abs(left[one] - left[again]).mean() < 3
    assert np.abs(left[one] - left[other]).mean() > 20
    # Copies have noise of their own after the first frame, which is given.
    assert np.abs(right[one][4:] - right[again][4:]).mean() > 1
    assert np.abs(right[one][0] - right[again][0]).mean() < np.abs(right[one][4:] - right[again][4:]).mean()


def test_videos_move_in_tensorboard(runs: Runs, tmp_path: Path) -> None:
    events = EventAccumulator(str(runs.root / "two" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("validation/")]
    assert tags == [f"validation/{Path(name).stem}" for name in NAMES]
    shown = events.Images(tags[0])
    assert [one.step for one in shown] == [0, 2, 4]
    (tmp_path / "shown.gif").write_bytes(shown[-1].encoded_image_string)
    with Image.open(tmp_path / "shown.gif") as picture:
        assert (picture.format, picture.size, picture.n_frames) == ("GIF", (WIDTH, HEIGHT), FRAMES)
    assert [one.value for one in events.Scalars("validation/failed")] == [0, 0, 0]


def test_a_stop_in_a_validation_saves_and_the_run_that_comes_back_makes_the_missing_videos(
    runs: Runs,
) -> None:
    """No checkpoint is due at the step; the second turn, of the third video alone, is under way."""
    config, folder = (
        runs.config("stopped", validation={**VIDEOS, "skip_initial_validation": True}),
        runs.root / "stopped",
    )
    ended = strike(2, config, [Strike(1, "denoised", DENOISING + 2, "SIGUSR1")], runs.root / "logs_stopped")
    assert ended.codes == [COME_BACK_CODE, 0], str(ended)
    assert "validation after step 2 is left unfinished: another rank was told to\n" in ended.stdout[0]
    assert "saved after step 2: " in ended.stdout[0]
    assert (folder / "checkpoints" / "latest").read_text() == "step_000002\n"
    place = folder / "samples" / "step_000002"
    there = {path.name: path.stat().st_mtime_ns for path in place.glob("*.mp4")}
    assert list(runs.samples("stopped", 2)) == NAMES[:2]
    assert not runs.record("stopped", 2)["complete"]
    encoded = {path: path.stat().st_mtime_ns for path in (folder / "validation").iterdir()}
    # Of a launch that got further, and whose last checkpoints are lost.
    further = folder / "samples" / "step_000004"
    further.mkdir()
    complete(further, "another", {}, {})

    again = train(2, config, logs=runs.root / "logs_stopped_again", timeout_s=300)
    assert f"validation after step 2: 3 sample videos in {place}\n" in again.stdout[0]
    assert {name: (place / name).stat().st_mtime_ns for name in there} == there
    assert {path: path.stat().st_mtime_ns for path in (folder / "validation").iterdir()} == encoded
    for step in (2, 4):
        assert_alike(runs.samples("stopped", step), runs.samples("two", step))
    assert_same_run(folder, runs.root / "two")


def test_a_stop_in_the_last_validation_leaves_the_end_to_the_run_that_comes_back(runs: Runs) -> None:
    config, folder = (
        runs.config("last", validation={**VIDEOS, "interval": 100, "skip_initial_validation": True}),
        runs.root / "last",
    )
    ended = strike(2, config, [Strike(0, "denoised", 1, "SIGTERM")], runs.root / "logs_last")
    assert ended.codes == [COME_BACK_CODE, 0], str(ended)
    assert not (folder / "DONE").exists()
    train(2, config, logs=runs.root / "logs_last_again", timeout_s=300)
    assert (folder / "DONE").exists()
    assert_alike(runs.samples("last", 4), runs.samples("two", 4))


def test_a_video_that_fails_on_one_rank_is_reported_and_the_run_goes_on(runs: Runs) -> None:
    """And a VAE that cannot be loaded is not loaded again for this rank's next video, but for the next validation."""
    config = runs.config("failing", validation={**VIDEOS, "interval": 100}, optimization={"steps": 1})
    strikes = [Strike(0, "vae", 1, "NO MEMORY"), Strike(1, "decode", 2, "NO MEMORY")]
    ended = strike(2, config, strikes, runs.root / "logs_failing")
    assert ended.codes == [0, 0], str(ended)
    why = "OutOfMemoryError: no memory is left"
    for step, names, more in ((0, [NAMES[0], NAMES[2]], ", and 1 more"), (1, [NAMES[1]], "")):
        path = runs.root / "failing" / "samples" / f"step_{step:06d}" / names[0]
        told = f"no {path} of prompt {PROMPTS[NAMES.index(names[0])]!r}{more}: {why}"
        assert f"validation after step {step}: {told}\n" in ended.stdout[0]
        assert list(runs.samples("failing", step)) == [name for name in NAMES if name not in names]
        assert runs.record("failing", step)["failed"] == dict.fromkeys(names, why)
    assert ended.stdout[0].count(why) == 2


@pytest.mark.parametrize(("stage", "code"), [(3, 2), (2, 0)])
def test_too_little_memory_on_one_rank_leaves_no_rank_waiting(runs: Runs, stage: int, code: int) -> None:
    """A rank that holds a part of the model cannot leave the others; one with a whole model only has no video."""
    name = f"memory_{stage}"
    config = runs.config(
        name, deepspeed={"stage": stage}, validation={**VIDEOS, "interval": 100}, optimization={"steps": 1}
    )
    ended = strike(2, config, [Strike(1, "forward", 2, "NO MEMORY")], runs.root / f"logs_{name}")
    if code:
        assert ended.codes[1] == code, str(ended)
        assert 0 not in ended.codes
        [line] = ended.errors
        assert line.startswith(
            "error: validation.video_dims: a sample video of 48x32x9 does not fit the memory of rank 1"
        )
    else:
        assert ended.codes == [0, 0], str(ended)
        assert list(runs.samples(name, 0)) == [NAMES[0], NAMES[2]]
