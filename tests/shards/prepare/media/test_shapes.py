from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards.geometry import Bucket, Scale
from shards.prepare.encode.assign import Clip, Rules, assign, check_buckets
from shards.prepare.media.shapes import BUCKETS, Scene, draw, edges, render
from shards.prepare.media.video import probe
from shards.prepare.tables.table import read_table

SCENE = Scene("square", "red", "left", 96, 64, 9, 24, 2.0, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("shapes")).parent


def test_demo_has_sizes_lengths_rates_pictures_and_references(folder: Path) -> None:
    rows = read_table(folder / "dataset.json")
    assert len(rows) == 48
    assert len({row.key for row in rows}) == 48
    infos = [probe(row.media) for row in rows]
    assert len({(info.width, info.height) for info in infos}) == 4
    assert {info.fps for info in infos} == {1.0, 8.0, 12.0, 24.0}
    assert min(info.frames for info in infos) == 1
    assert max(info.frames for info in infos) == 33
    assert sum(info.frames == 1 for info in infos) == 6
    for row, info in zip(rows, infos, strict=True):
        assert [probe(reference) for reference in row.references] == [info]
    assert len({row.caption for row in rows}) > 20


@pytest.mark.parametrize("scale", [Scale(4, 16), Scale(8, 32)])
def test_buckets_take_every_clip_without_scaling(folder: Path, scale: Scale) -> None:
    buckets = Bucket.parse_list(BUCKETS)
    check_buckets(buckets, scale)
    for row in read_table(folder / "dataset.json"):
        job = assign(row, Rules(buckets, scale))
        assert isinstance(job, Clip)
        assert (job.bucket.width, job.bucket.height) == (job.info.width, job.info.height)


def test_same_seed_same_files(folder: Path, tmp_path: Path) -> None:
    again = render(tmp_path, clips=9).parent
    for path in sorted(again.glob("*/*")):
        assert path.read_bytes() == (folder / path.relative_to(again)).read_bytes()
    other = render(tmp_path / "other", clips=2, seed=1).parent
    assert (other / "clips/000.mp4").read_bytes() != (folder / "clips/000.mp4").read_bytes()


def test_caption_tells_what_is_seen(folder: Path) -> None:
    captions = {entry["caption"] for entry in json.loads((folder / "dataset.json").read_text())}
    assert any(caption.endswith("moves left") for caption in captions)
    assert SCENE.caption == "a red square moves left"
    frames = draw(SCENE)
    assert frames.shape == (9, 64, 96, 3)
    assert frames.dtype == np.uint8
    centres = [np.argwhere(frame[..., 0] > 200)[:, 1].mean() for frame in frames]
    assert np.allclose(np.diff(centres), -2.0)


def test_edges_are_the_outline() -> None:
    frame = edges(draw(SCENE))[0, ..., 0]
    assert set(np.unique(frame)) == {0, 255}
    assert frame[32, 48] == 0
    assert frame[5, 5] == 0
    assert frame[32].sum() == 255 * 4


def test_a_colour_as_bright_as_the_backdrop_has_edges_too() -> None:
    alike = SCENE._replace(
        backdrop=122
    )  # behind a red whose channels are 100 on average, at four fifths of it
    assert edges(draw(alike))[0, 32].any()
