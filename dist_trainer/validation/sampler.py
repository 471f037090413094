"""The sample videos of a run: all ranks denoise in step, each its own video, and write it; rank 0 shows them all."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import Tensor

from dist_trainer.begun import Begun
from dist_trainer.build import dtype_of
from dist_trainer.checkpoints.kept import name_of
from dist_trainer.feed.collate import idle
from dist_trainer.figures.metrics import forget_peak
from dist_trainer.stop import Wish
from dist_trainer.validation.asked import asked
from dist_trainer.validation.decode import decode
from dist_trainer.validation.denoise import Inputs, Sampling, denoising
from dist_trainer.validation.due import videos_due
from dist_trainer.validation.prompts import Cases, read_case, shown
from dist_trainer.validation.record import begin, complete
from dist_trainer.validation.show import beside, moving, read, write_shown
from dist_trainer.validation.videos import Video, share
from dist_trainer.watch import progress
from shards.errors import InputError
from shards.hashing import mix
from shards.prepare.encode.encoders import choose_dtype
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.vae import vae_scale
from shards.prepare.media.clip_error import ClipError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo

# Apart from the streams that training draws. holdout.py has these numbers too, but hashes one value less with them.
_NOISE, _INSIDE = 201, 202
# What of the block the videos depend on; prompts and files are in the name of the encoded ones.
_LOOKS = {
    "negative_prompt",
    "video_dims",
    "frame_rate",
    "seed",
    "inference_steps",
    "videos_per_prompt",
    "guidance_scale",
}
_Making = Generator[Inputs, Tensor, Tensor]


@dataclass(frozen=True)
class Sampler:
    """What makes the sample videos of a run from its cases, with the weights' running mean where there is one."""

    run: Begun
    cases: Cases

    def at(self, step: int) -> Wish:
        """Make the videos of a step, where they are due and not there; all ranks together.

        Returns, alike on every rank, COME_BACK or STOP where that was asked for on the way: what is missing then is
        made when the run comes back. A video that fails is reported, and left out. Raises InputError where the model
        cut over the ranks (stage 3) has too little memory on one: it cannot go on without that rank.
        """
        if not videos_due(self.run.config, step):
            return Wish.NONE
        progress.doing("validating")
        world, began, begun = self.run.gathering.world, time.perf_counter(), ""
        if world.is_main:
            names = [video.name for video in self.cases.wanted.videos]
            begun = json.dumps(begin(self._place(step), self._request, names))
        todo = json.loads(self.run.gathering.share("validation: begin", begun))
        if todo is None:
            return Wish.NONE
        failed: dict[str, str] = {}
        with self.run.ema.shown() if self.run.ema else nullcontext(), self.run.engine.evaluating():
            for name in self._own(todo, failed):
                wish = self._turn(step, name, failed)
                if wish >= Wish.COME_BACK:
                    why = self.run.requests.reason(wish)
                    self._say(f"validation after step {step} is left unfinished: {why}")
                    return wish
        told = self.run.gathering.collect("validation: end", json.dumps(failed))
        if world.is_main:
            self._finish(step, {name: why for one in told for name, why in json.loads(one).items()}, began)
        forget_peak()
        return Wish.NONE

    def _own(self, todo: Sequence[str], failed: dict[str, str]) -> list[str | None]:
        """The files that this rank makes, turn after turn; none where it cannot load the VAE."""
        world = self.run.gathering.world
        own = share(todo, world.size, world.rank)
        try:
            if any(own):
                _ = self._vae
        except Exception as error:
            failed |= {name: _reason(error) for name in own if name}
            return [None] * len(own)
        return own

    def _turn(self, step: int, name: str | None, failed: dict[str, str]) -> Wish:
        """Make the video of this name, or keep step with ranks that make one; the greatest wish of all ranks.

        Nothing that a video does may let the other ranks wait: this one goes on without it.
        """
        making, latents, inputs = None, None, self._idle
        if name:
            try:
                making = self._making(self._video(name))
                inputs = next(making)
            except Exception as error:
                making, failed[name] = None, _reason(error)
        for _ in range(self.run.config.validation.inference_steps):
            progress.moved()
            prediction = None
            try:
                prediction = self.run.engine.forward(*inputs)
            except torch.OutOfMemoryError as error:
                if not making or not name or self._is_cut:
                    raise InputError(self._too_large()) from error
                torch.cuda.empty_cache()
                failed[name], inputs, making = _reason(error), self._idle, None
            if name and making and prediction is not None:
                try:
                    inputs = making.send(prediction)
                except StopIteration as end:
                    latents, inputs, making = end.value, self._idle, None
                except Exception as error:
                    failed[name], inputs, making = _reason(error), self._idle, None
            wish = asked(self.run.requests, self.run.gathering.world.device)
            if wish >= Wish.COME_BACK:
                return wish
        if name and latents is not None:
            try:
                self._write(step, self._video(name), latents)
            except Exception as error:
                failed[name] = _reason(error)
        return Wish.NONE

    def _making(self, video: Video) -> _Making:
        recipe, seed = self.run.data.feeding.recipe, self.run.config.validation.seed
        drawn = torch.Generator().manual_seed(int(mix(_NOISE, seed, video.prompt, video.copy)))
        channels = self.run.data.feeding.channels // (recipe.patch.temporal * recipe.patch.spatial**2)
        noise = torch.randn((channels, *self.cases.wanted.grid), generator=drawn)
        case, device = read_case(self.cases.path, video.prompt), self.run.gathering.world.device
        return denoising(case, noise, self._sampling, recipe, device, dtype_of(self.run.config), drawn)

    def _write(self, step: int, video: Video, latents: Tensor) -> None:
        """Decode latents [C,F,H,W] and write them, the reference beside them where there is one."""
        if not torch.isfinite(latents).all():
            raise ValueError("the model's predictions are not finite")
        settings, device = self.run.config.validation, self.run.gathering.world.device
        seed = int(mix(_INSIDE, settings.seed, video.prompt, video.copy)) >> 1
        frames = decode(self._vae, latents, device, seed)
        if self.cases.wanted.reference is not None:
            frames = beside(read(shown(self.cases.path, video.prompt)), frames)
        write_shown(self._place(step) / video.name, frames, settings.frame_rate)

    def _finish(self, step: int, failed: dict[str, str], began: float) -> None:
        """Rank 0: show the videos, say what failed, and note that all is done."""
        place, settings, board = self._place(step), self.run.config.validation, self.run.board
        made = [video for video in self.cases.wanted.videos if video.name not in failed]
        for why in sorted(set(failed.values())):
            name, *others = sorted(name for name in failed if failed[name] == why)
            prompt = settings.prompts[self._video(name).prompt]
            more = f", and {len(others)} more" if others else ""
            self._say(f"validation after step {step}: no {place / name} of prompt {prompt!r}{more}: {why}")
        if board:
            for video in made:
                progress.moved()
                try:
                    gif = moving(place / video.name).read_bytes()
                except OSError as error:
                    self._say(f"validation after step {step}: not shown: {error}")
                    continue
                board.video(f"validation/{Path(video.name).stem}", gif, step)
            seconds = time.perf_counter() - began
            board.figures(step, {"time/validation_s": seconds, "validation/failed": float(len(failed))})
        complete(place, self._request, {video.name: settings.prompts[video.prompt] for video in made}, failed)
        self._say(f"validation after step {step}: {len(made)} sample videos in {place}")

    def _place(self, step: int) -> Path:
        return self.run.folder.samples / name_of(step)

    def _video(self, name: str) -> Video:
        return next(video for video in self.cases.wanted.videos if video.name == name)

    def _say(self, line: str) -> None:
        if self.run.gathering.world.is_main:
            print(line, flush=True)

    def _too_large(self) -> str:
        width, height, frames = self.run.config.validation.video_dims
        return (
            f"validation.video_dims: a sample video of {width}x{height}x{frames} does not fit the memory of rank "
            f"{self.run.gathering.world.rank} beside the training; make it smaller, or set "
            "validation.guidance_scale to 1"
        )

    @property
    def _is_cut(self) -> bool:
        """Whether the model lies cut over several ranks, which then must not go on alone."""
        return self.run.engine.stage == 3 and self.run.gathering.world.size > 1

    @cached_property
    def _request(self) -> str:
        """A hash of all that the videos depend on, the model's weights aside."""
        settings = self.run.config.validation.model_dump(mode="json", include=_LOOKS)
        return xxhash.xxh3_64_hexdigest(json.dumps([self.cases.path.name, settings], sort_keys=True).encode())

    @cached_property
    def _idle(self) -> Inputs:
        feeding, device = self.run.data.feeding, self.run.gathering.world.device
        return idle(feeding.channels, feeding.text_width).to(device, dtype_of(self.run.config)).inputs()

    @cached_property
    def _sampling(self) -> Sampling:
        settings = self.run.config.validation
        steps, guidance, fps = settings.inference_steps, settings.guidance_scale, settings.frame_rate
        return Sampling(steps, guidance, fps, self.cases.scheduler)

    @cached_property
    def _vae(self) -> AutoencoderKLLTXVideo:
        """On the CPU; only ranks that make videos load it. Raises InputError where it is not the dataset's."""
        source, dataset = self.cases.model, self.run.data.dataset
        assert source is not None, "only ranks that make videos load it"
        vae = load_vae(source, choose_dtype("auto", self.run.gathering.world.device))
        if vae_scale(vae) != dataset.info.scale:
            raise InputError(
                f"{dataset.root}: dataset.json says {dataset.info.scale}, the VAE of {source} has {vae_scale(vae)}"
            )
        return vae


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, (InputError, ClipError)) else f"{type(error).__name__}: {first}"
