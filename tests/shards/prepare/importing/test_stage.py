from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import open_dataset
from shards.dataset.output import UNFINISHED_NAME
from shards.errors import InputError
from shards.formats.tar import read_shard
from shards.prepare.importing.stage import ImportOptions, ImportReport, import_precomputed
from shards.prepare.tables.rows import write_rows
from shards.prepare.tables.table import read_table
from shards.reader import Reader
from shards.storage import Folder
from tests.support.precomputed import save_sample

NO_CAPTIONS = "the files hold no captions"


def run(root: Path, out: Path, **options: Any) -> ImportReport:
    return import_precomputed(root, out, ImportOptions(**options))


def members(out: Path) -> dict[str, dict[str, Any]]:
    """JSON member of every sample by its key."""
    shards = open_dataset(out).manifest.shards
    return {s.key: json.loads(s.meta) for name in shards for s in read_shard(Folder(out), name)}


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failures.jsonl").read_text().splitlines()
    return {record["source"]: record["reason"] for record in map(json.loads, lines)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_dataset_holds_the_folders_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    names = ("reference_latents", "depth")
    saved = {
        f"clips__{number}": save_sample(
            tmp_path / "in" / ".precomputed",
            f"clips/{number}.mp4",
            grid=(1 + number, 2, 3),
            text=2 + number,
            fps=10.0 + number,
            references=names,
            dtype=dtype,
            seed=number,
        )
        for number in range(5)
    }
    report = run(tmp_path / "in", tmp_path / "out", references=names)
    assert (report.samples, report.references, report.failures) == (5, names, ())
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest.fps.tolist() == [10.0, 11.0, 12.0, 13.0, 14.0]
    with Reader(dataset) as reader:
        for sample in reader.read(range(5)):
            tensors = saved[sample.key]
            assert torch.equal(sample.latents, tensors["latents"])
            assert torch.equal(sample.prompt_embeds, tensors["prompt_embeds"])
            assert sample.latents.dtype == sample.prompt_embeds.dtype == dtype
            for found, name in zip(
                sample.references, ("reference_latents", "reference_latents_2"), strict=True
            ):
                assert torch.equal(found, tensors[name])


def test_without_a_model_the_description_says_what_the_files_do(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4", grid=(2, 3, 4))
    run(tmp_path / "in", tmp_path / "out")
    info = open_dataset(tmp_path / "out").info
    assert (info.channels, info.text_width, tuple(info.scale)) == (4, 16, (8, 32))
    assert info.vae.fingerprint == info.text_encoder.fingerprint == ""
    assert info.null_prompt_embeds is None
    meta = members(tmp_path / "out")["a"]
    assert (meta["width"], meta["height"], meta["frames"], meta["bucket"]) == (128, 96, 9, "128x96x9")
    assert (meta["caption"], meta["source"]) == ("", "latents/a.pt")


def test_with_a_model_the_description_is_that_of_encode(tmp_path: Path, model_folder: Path) -> None:
    sizes = json.loads((model_folder / "transformer" / "config.json").read_text())
    widths = {"channels": sizes["in_channels"], "width": sizes["caption_channels"]}
    save_sample(tmp_path / "in", "a.mp4", **widths)
    run(tmp_path / "in", tmp_path / "out", model=model_folder)
    info = open_dataset(tmp_path / "out").info
    assert info.vae.fingerprint
    assert info.text_encoder.fingerprint
    assert info.scale.temporal > 0
    assert info.null_embeds().shape[1] == widths["width"]
    save_sample(tmp_path / "other", "a.mp4", channels=widths["channels"] + 1)
    with pytest.raises(InputError, match="where the dataset has"):
        run(tmp_path / "other", tmp_path / "refused", model=model_folder)


def test_captions_and_keys_come_from_the_table(tmp_path: Path) -> None:
    for media in ("x/a.mp4", "b.mov", "lone.mp4"):
        save_sample(tmp_path / ".precomputed", media)
    table = tmp_path / "dataset.csv"
    rows = [("x/a.mp4", "a cat"), ("b.mov", "a dog"), ("gone.mp4", "a cow")]
    write_rows(table, [{"media_path": media, "caption": caption} for media, caption in rows])
    report = run(tmp_path, tmp_path / "out", table=table)
    found = members(tmp_path / "out")
    assert {key: meta["caption"] for key, meta in found.items()} == {
        "x__a_mp4": "a cat",
        "b_mov": "a dog",
        "lone": "",
    }
    assert found.keys() >= {row.key for row in read_table(table) if row.source != "gone.mp4"}
    assert found["x__a_mp4"]["source"] == "x/a.mp4"
    assert any("1 sample not in" in note and "lone" in note for note in report.notes)
    assert any("1 clip of" in note and "gone" in note for note in report.notes)


def test_other_columns_of_the_table(tmp_path: Path) -> None:
    save_sample(tmp_path / ".precomputed", "a.mp4")
    table = tmp_path / "dataset.json"
    write_rows(table, [{"video": "a.mp4", "text": "a cat"}])
    run(tmp_path, tmp_path / "out", table=table, caption_column="text", media_column="video")
    assert members(tmp_path / "out")["a_mp4"]["caption"] == "a cat"
    with pytest.raises(InputError, match="no column 'media_path'"):
        run(tmp_path, tmp_path / "again", table=table, caption_column="text")


def test_a_missing_rate_is_taken_from_the_option_and_said(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4", fps=None)
    save_sample(tmp_path / "in", "b.mp4", fps=30.0)
    assert any(
        "1 file without a frame rate: 24 was taken" in note
        for note in run(tmp_path / "in", tmp_path / "24").notes
    )
    run(tmp_path / "in", tmp_path / "12", fps=12.5)
    assert open_dataset(tmp_path / "24").manifest.fps.tolist() == [24.0, 30.0]
    assert open_dataset(tmp_path / "12").manifest.fps.tolist() == [12.5, 30.0]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused_before_anything_is_read(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path / "nowhere", tmp_path / "out", fps=fps)
    assert str(caught.value) == f"--fps {fps}: the rate of clips is a positive number"


def test_what_is_left_out_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, media in enumerate(("good", "bad", "wide", "alone", "pickled")):
        save_sample(root, f"{media}.mp4", width=16 + (media == "wide"), seed=number)
    (root / "latents" / "bad.pt").write_bytes(b"not a file of torch")
    (root / "conditions" / "alone.pt").unlink()
    torch.save({"latents": Path("x")}, root / "latents" / "pickled.pt")
    save_sample(root, "aaa.mp4")
    (root / "latents" / "aaa.pt").unlink()
    report = run(root, tmp_path / "out")
    assert [*members(tmp_path / "out")] == ["good"]
    found = failures(tmp_path / "out")
    assert found == dict(report.failures)
    assert found.keys() == {f"latents/{name}.pt" for name in ("bad", "wide", "alone", "pickled")} | {
        "conditions/aaa.pt"
    }
    assert found["latents/bad.pt"].startswith("torch.load(weights_only=True) refuses it: damaged")
    assert "it asks for pathlib" in found["latents/pickled.pt"]
    assert "text of width 17, where the dataset has 4 and 16" in found["latents/wide.pt"]
    assert any("1 caption without latents" in note and "issue 59" in note for note in report.notes)


def test_references_of_other_channels_are_left_out(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4")
    save_sample(tmp_path / "in", "b.mp4", references=("reference_latents",))
    stored = torch.load(tmp_path / "in" / "latents" / "a.pt", weights_only=True)
    torch.save(stored | {"latents": torch.zeros(24, 3)}, tmp_path / "in" / "reference_latents" / "a.pt")
    run(tmp_path / "in", tmp_path / "out")
    assert failures(tmp_path / "out") == {"latents/a.pt": "reference_latents has 3 channels, latents 4"}


def test_reference_folders_that_were_not_taken_are_said(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4", references=("depth", "pose"))
    notes = run(tmp_path / "in", tmp_path / "out").notes
    assert any("not taken: depth (1 file), pose (1 file); add --reference-dir" in note for note in notes)
    assert open_dataset(tmp_path / "out").manifest.references.shape[1] == 0


def test_nothing_to_import_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4")
    (tmp_path / "in" / "latents" / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its samples could be imported; the first, latents/a.pt"):
        run(tmp_path / "in", tmp_path / "out")
    assert "latents/a.pt" in failures(tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(6):
        save_sample(tmp_path / "in", f"{number}.mp4", seed=number)
    for out in ("a", "b"):
        run(tmp_path / "in", tmp_path / out, shard_bytes=4096)
    assert len(list((tmp_path / "a" / "shards").iterdir())) > 1
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


KILLED = """
import os, sys
from pathlib import Path
from shards.prepare.importing.stage import ImportOptions, import_precomputed
seen = []
def die(total):
    seen.append(total)
    if len(seen) == 5:
        os.kill(os.getpid(), 9)
import_precomputed(Path(sys.argv[1]), Path(sys.argv[2]), ImportOptions(shard_bytes=2048), on_sample=die)
"""


def test_an_import_that_was_killed_is_done_again(tmp_path: Path) -> None:
    for number in range(8):
        save_sample(tmp_path / "in", f"{number}.mp4", seed=number)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out")]
    assert subprocess.run(command, timeout=120, check=False).returncode == -9
    assert (tmp_path / "out" / UNFINISHED_NAME).exists()
    assert list((tmp_path / "out" / "shards").glob("*.tar"))
    (tmp_path / "in" / "latents" / "0.pt").unlink()  # shards of the first attempt would hold it
    assert run(tmp_path / "in", tmp_path / "out").samples == 7
    assert not (tmp_path / "out" / UNFINISHED_NAME).exists()
    assert sorted(members(tmp_path / "out")) == list("1234567")


def test_a_folder_that_holds_a_dataset_is_not_touched(tmp_path: Path) -> None:
    """The same request again finds it complete; other files, other options or a lost shard are refused."""
    save_sample(tmp_path / "in", "a.mp4")
    first = run(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    again = run(tmp_path / "in", tmp_path / "out")
    assert (again.samples, again.was_complete, first.was_complete) == (1, True, False)
    with pytest.raises(InputError, match="already holds a dataset"):
        run(tmp_path / "in", tmp_path / "out", fps=30.0)
    shard = tmp_path / "out/shards/000000.tar"
    shard.rename(tmp_path / "elsewhere.tar")
    with pytest.raises(InputError, match="already holds a dataset"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "elsewhere.tar").rename(shard)
    save_sample(tmp_path / "in", "b.mp4")
    with pytest.raises(InputError, match="already holds a dataset"):
        run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST_NAME).read_bytes() == before
    shutil.rmtree(tmp_path / "out" / "shards")
    for name in (MANIFEST_NAME, "dataset.json"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / "shards" / "mine.tar").write_bytes(b"")
    with pytest.raises(InputError, match="shards holds files already"):
        run(tmp_path / "in", tmp_path / "out")


def test_into_the_folder_that_holds_precomputed(tmp_path: Path) -> None:
    save_sample(tmp_path / ".precomputed", "a.mp4")
    run(tmp_path, tmp_path)
    assert len(open_dataset(tmp_path).manifest) == 1


def test_into_an_object_store(tmp_path: Path, bucket: str) -> None:
    for media in "ab":
        save_sample(tmp_path / "in", f"{media}.mp4")
    import_precomputed(tmp_path / "in", f"{bucket}/out")
    run(tmp_path / "in", tmp_path / "here")
    assert (
        open_dataset(f"{bucket}/out").manifest.fingerprint
        == open_dataset(tmp_path / "here").manifest.fingerprint
    )


def test_the_command_tells_all_of_it(tmp_path: Path) -> None:
    for media in "ab":
        save_sample(tmp_path / "in", f"{media}.mp4", fps=None, references=("reference_latents", "pose"))
    (tmp_path / "in" / "conditions" / "b.pt").unlink()
    command = [sys.executable, "-m", "shards", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for part in (
        "1 sample, each with reference_latents",
        "1 left out",
        NO_CAPTIONS,
        "without a frame rate",
        "pose (2",
    ):
        assert part in done.stdout, done.stdout
    assert "latents/b.pt" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith(f"{tmp_path}/out is complete: 1 sample, nothing left to do\n")


def test_numbers_of_numpy_are_no_hindrance(tmp_path: Path) -> None:
    save_sample(tmp_path / "in", "a.mp4", fps=np.float64(25))
    run(tmp_path / "in", tmp_path / "out")
    assert open_dataset(tmp_path / "out").manifest.fps.tolist() == [25.0]
