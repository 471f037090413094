"""A dataset and a model whose VAEs differ do not go together, and every rank says so alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_trainer.model.family import vae_of
from dist_trainer.provenance import check_vae, mismatches
from dist_trainer.tiny import write_tiny_model
from shards.dataset.info import Source, write_info
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import InputError
from shards.prepare.encode.models import fingerprint, load_vae
from tests.support.bench import Bench, assert_refused
from tests.support.datasets import write_dataset
from tests.support.gatherings import at_once, in_memory
from tests.support.models import tiny_source

pytestmark = pytest.mark.timeout(300)
KIND = "AutoencoderKLLTXVideo"


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Bench:
    return Bench(tmp_path, model_folder, paired_dataset)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same sizes with other weights."""
    return write_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


def described(bench: Bench, vae: Source) -> Path:
    """A copy of the dataset that says it was encoded by `vae`."""
    root = bench.copy_of_dataset()
    write_info(root, replace(bench.dataset.info, vae=vae))
    return root


@pytest.mark.parametrize("size", [1, 2])
def test_another_vae_is_refused_with_both_fingerprints(bench: Bench, other_model: Path, size: int) -> None:
    found = fingerprint(load_vae(other_model, torch.float32))
    ended = bench.run(size=size, blocks={"model": {"model_source": str(other_model)}})
    encoded = bench.dataset.info.vae
    assert found != encoded.fingerprint
    assert_refused(
        ended,
        bench.dataset.root,
        f"encoded by the VAE {encoded.fingerprint} (of {encoded.source})",
        f"{other_model} has the VAE {found}",
        "encode the clips again",
    )
    assert ended.codes == [2] * size
    assert [path.name for path in bench.output.iterdir()] == [".lock"]


def test_the_dataset_of_another_vae_is_refused(bench: Bench, other_model: Path) -> None:
    vae = load_vae(other_model, torch.float32)
    root = described(bench, Source("elsewhere/other", fingerprint(vae), type(vae).__name__))
    ended = bench.run(blocks={"data": {"preprocessed_data_root": str(root)}})
    assert_refused(
        ended, root, f"{fingerprint(vae)} (of elsewhere/other)", bench.dataset.info.vae.fingerprint
    )


@pytest.mark.parametrize("digits", ["0123456789abcdef", ""])
@pytest.mark.parametrize("own_vae", [True, False])
def test_another_model_family_is_refused_with_both_fingerprints(
    bench: Bench, digits: str, own_vae: bool
) -> None:
    """As far as they are known: of an imported dataset, or a model without its VAE, the class alone is."""
    root = described(bench, Source("elsewhere/other", digits, "AutoencoderKLHunyuanVideo"))
    model = bench.model if own_vae else _without_vae(bench)[0]
    own = bench.dataset.info.vae.fingerprint if own_vae else f"of unknown fingerprint ({model} has no vae/)"
    blocks = {"data": {"preprocessed_data_root": str(root)}, "model": {"model_source": str(model)}}
    ended = bench.run(size=2, blocks=blocks)
    assert_refused(ended)
    assert ended.errors == [
        f"error: {root}: latents were encoded by the AutoencoderKLHunyuanVideo {digits or 'of unknown fingerprint'} "
        f"(of elsewhere/other), but model.model_source {model} has the AutoencoderKLLTXVideo {own}; encode the clips "
        "again with this model, or train the model they were encoded for"
    ]
    assert ended.codes == [2, 2]


def test_another_family_is_named_before_its_other_sizes(bench: Bench) -> None:
    other = write_dataset(bench.root / "other", 4, channels=6, text_width=20).root
    info = open_dataset(other).info
    write_info(other, replace(info, vae=Source("elsewhere/other", "0123", "AutoencoderKLHunyuanVideo")))
    ended = bench.run(blocks={"data": {"preprocessed_data_root": str(other)}})
    assert_refused(ended, "AutoencoderKLHunyuanVideo 0123 (of elsewhere/other)")


def _without_vae(bench: Bench) -> tuple[Path, Path]:
    model = bench.copy_of_model()
    shutil.rmtree(model / "vae")
    return model, Path(bench.dataset.root)


def _without_fingerprint(bench: Bench) -> tuple[Path, Path]:
    return bench.model, described(bench, Source())


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_without_vae, "has no vae/"), (_without_fingerprint, "dataset.json has no fingerprint of a VAE")],
    ids=["model-without-vae", "imported-dataset"],
)
def test_what_cannot_be_compared_trains_with_a_note(
    bench: Bench, change: Callable[[Bench], tuple[Path, Path]], reason: str
) -> None:
    model, root = change(bench)
    blocks = {
        "model": {"model_source": str(model)},
        "data": {"preprocessed_data_root": str(root)},
        "optimization": {"steps": 1},
    }
    ended = bench.run(size=2, blocks=blocks)
    assert ended.codes == [0, 0], str(ended)
    notes = [line for text in ended.stdout for line in text.splitlines() if "VAE" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: ")
    assert reason in notes[0]


def test_what_fits_trains_without_a_word_of_it(bench: Bench) -> None:
    ended = bench.run(blocks={"optimization": {"steps": 1}})
    assert ended.codes == [0], str(ended)
    assert "VAE" not in ended.stdout[0]


def test_a_damaged_vae_that_only_rank_0_looks_at_is_told_once(bench: Bench) -> None:
    model = bench.copy_of_model()
    file = next((model / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    ended = bench.run(size=2, blocks={"model": {"model_source": str(model)}})
    assert_refused(ended, f"{model / 'vae'}: this vae cannot be loaded")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_vae_saved_in_another_dtype_is_the_same(
    tmp_path: Path, model_folder: Path, paired_dataset: Dataset, dtype: torch.dtype
) -> None:
    load_vae(model_folder, dtype).save_pretrained(tmp_path / "vae")
    at = at_once(lambda g: check_vae(str(tmp_path), KIND, [paired_dataset], g), in_memory(1))
    assert at == [None]


def test_rank_0_alone_reads_the_weights(
    model_folder: Path, paired_dataset: Dataset, other_model: Path
) -> None:
    def check(source: Path) -> list[object]:
        return at_once(
            lambda g: check_vae(str(source) if g.world.is_main else "/no/such", KIND, [paired_dataset], g),
            in_memory(3),
        )

    assert check(model_folder) == [None] * 3
    refused = check(other_model)
    assert all(isinstance(error, InputError) for error in refused)
    assert len({str(error) for error in refused}) == 1


@pytest.mark.parametrize("source", ["nobody/nothing", "file"])
def test_a_model_whose_vae_cannot_be_had_is_not_compared(
    tmp_path: Path, paired_dataset: Dataset, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    if source == "file":
        source = str(tmp_path / "model.safetensors")
        Path(source).write_bytes(b"")
    assert at_once(lambda g: check_vae(source, KIND, [paired_dataset], g), in_memory(1)) == [None]
    note = capsys.readouterr().out
    assert note.startswith(f"note: {paired_dataset.root} was encoded by the VAE of tiny; ")
    assert source in note
    assert note.count("\n") == 1


def test_each_dataset_is_compared_and_those_of_one_vae_once(
    model_folder: Path, paired_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held out may say of what encoded it what the training data does not."""
    unknown = replace(paired_dataset, info=replace(paired_dataset.info, vae=Source()))
    other = replace(unknown, root="held_out", info=replace(unknown.info, vae=Source("x", "0" * 16, KIND)))
    assert mismatches(str(model_folder), KIND, [unknown, replace(unknown, root="b")]) == ""
    assert capsys.readouterr().out.count("has no fingerprint of a VAE") == 1
    assert mismatches(str(model_folder), KIND, [unknown, other]).startswith("held_out: latents were encoded")
    first = mismatches(str(model_folder), KIND, [other, replace(other, root="b"), unknown])
    assert first.startswith("held_out: latents were encoded")


def test_the_kind_of_a_vae_stays_with_the_dataset(bench: Bench) -> None:
    root = described(bench, tiny_source())
    assert open_dataset(root).info.vae == tiny_source()
    assert tiny_source().kind == KIND == vae_of(str(bench.model))
