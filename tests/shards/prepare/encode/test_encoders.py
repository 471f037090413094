from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline

from shards.errors import InputError
from shards.prepare.encode.encoders import Encoders, choose_device, choose_dtype, load_encoders
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.vae import encode_clips
from tests.support.models import tiny_model

CPU = torch.device("cpu")


def load(device: torch.device, **options) -> Encoders:
    return load_encoders(
        tiny_model(), load_vae(tiny_model(), torch.float32), device, EncodeOptions(**options)
    )


def test_each_prompt_is_embedded_once_and_a_cut_one_is_marked() -> None:
    encoders = load(CPU, max_text_tokens=16)
    calls = []
    encoders.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    texts = encoders.embed(["a cat", "red " * 30, "a cat", ""])
    assert len(calls) == len(texts) == 3
    assert [text.cut for text in texts.values()] == [False, True, False]
    assert torch.equal(texts[""].embeds, encoders.describe().null_embeds())


def test_tiles_are_those_of_diffusers() -> None:
    clip = np.random.default_rng(0).integers(0, 255, (1, 544, 544, 3), np.uint8)
    found = {
        tiling: encode_clips(
            load(CPU, vae_tiling=tiling).ready_vae(), [clip], [torch.Generator().manual_seed(1)]
        )[0]
        for tiling in (False, True)
    }
    vae = AutoencoderKLLTXVideo.from_pretrained(tiny_model(), subfolder="vae")
    vae.enable_tiling()
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        z = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(1))
    z = LTXPipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    assert torch.equal(found[True], z[0].to(torch.bfloat16))
    assert not torch.equal(found[True], found[False])


@pytest.mark.parametrize("swap", [False, True])
def test_swapping_keeps_one_network_on_the_device(swap: bool) -> None:
    """The meta device stands for a GPU: it is another device than the CPU."""
    encoders = load(torch.device("meta"), swap_models=swap)
    assert encoders.vae.device == encoders.text_encoder.device == CPU
    encoders.ready_vae()
    assert (encoders.vae.device.type, encoders.text_encoder.device.type) == ("meta", "cpu")
    if not swap:
        encoders._make_ready(encoders.text_encoder, encoders.vae)
        assert encoders.vae.device.type == encoders.text_encoder.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_swapped_models_give_the_same_numbers() -> None:
    device = choose_device("auto", 3)
    both, swapped = load(device), load(device, swap_models=True)
    for _ in range(2):
        for encoders in (both, swapped):
            encoders.ready_vae()
        assert swapped.text_encoder.device == CPU
        one, other = both.embed(["a cat"])["a cat"], swapped.embed(["a cat"])["a cat"]
        assert torch.equal(one.embeds, other.embeds)
        assert swapped.vae.device == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_devices_without_a_gpu() -> None:
    assert choose_device("auto", 5) == CPU
    with pytest.raises(InputError, match=r"^--device 'tpu' is not known: use auto, cpu or cuda$"):
        choose_device("tpu", 0)
    with pytest.raises(InputError, match="--device 'cuda' cannot be used here: "):
        choose_device("cuda", 0)


def test_dtype_follows_the_device() -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("cuda:1")) == torch.bfloat16
    assert choose_dtype("float16", CPU) == torch.float16
    with pytest.raises(InputError) as error:
        choose_dtype("int8", CPU)
    assert str(error.value) == "--dtype 'int8' is not known: use auto, bfloat16, float16, float32"


BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(not BITSANDBYTES, reason="needs bitsandbytes")
def test_8_bits_stay_close_and_keep_the_fingerprint_of_the_plain_weights() -> None:
    device = choose_device("auto", 0)
    plain, small = load(device), load(device, text_encoder_8bit=True)
    exact, found = (encoders.embed(["a red cat"])["a red cat"].embeds.float() for encoders in (plain, small))
    assert 0 < (found - exact).std() / exact.std() < 0.05
    assert small.describe().text_encoder == plain.describe().text_encoder


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed")
def test_8_bits_need_a_package_and_say_which() -> None:
    with pytest.raises(InputError) as error:
        load(CPU, text_encoder_8bit=True)
    assert str(error.value) == (
        "an 8-bit text encoder needs the package bitsandbytes, which is not installed: "
        "`pip install bitsandbytes`, or leave out --text-encoder-8bit"
    )
