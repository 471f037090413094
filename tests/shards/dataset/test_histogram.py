from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.dataset.histogram import _edges, _label, _range, picture
from shards.geometry import Scale
from tests.support.datasets import write_dataset


@pytest.mark.parametrize(
    "grids",
    [[(1, 1, 1)], [(1, 2, 2), (9, 14, 24)], [(1, 1, n) for n in range(1, 40)], [(1, 1, 1), (33, 22, 40)]],
    ids=["one size", "two", "many", "far apart"],
)
def test_any_dataset_has_a_picture(tmp_path: Path, grids: list[tuple[int, int, int]]) -> None:
    dataset = write_dataset(tmp_path, len(grids), grids=grids, channels=1)
    data = picture(dataset.manifest, dataset.info.scale, "clips")
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert min(image.shape[:2]) > 400
    assert (image == (0x44, 0x77, 0xAA)).all(axis=2).any(), "bars are drawn"
    assert picture(dataset.manifest, dataset.info.scale, "clips") == data


@pytest.mark.parametrize("lengths", [[5], [1, 2], [880, 29040], [1, 1_000_000]])
def test_every_length_is_inside_the_bins(lengths: list[int]) -> None:
    edges = _edges(np.array(lengths))
    assert np.histogram(lengths, edges)[0].sum() == len(lengths)
    assert (np.diff(edges) > 0).all()
    assert 0 < edges[0] < min(lengths)
    assert max(lengths) < edges[-1]


def test_the_lengths_are_named() -> None:
    assert _range(np.array([2688, 2688])) == "2,688"
    assert _range(np.array([2688, 14080, 300])) == "300 to 14,080"


def test_a_size_is_named_in_pixels_and_in_latent_cells() -> None:
    assert _label((12, 14, 24), Scale(8, 32)) == "768x448x89   12x14x24 = 4,032"


def test_no_window_and_no_global_state_are_needed() -> None:
    code = (
        "import sys; import numpy as np; from shards.geometry import Grid, Scale; "
        "from shards.dataset.manifest import Manifest, Row; from shards.dataset.histogram import picture; "
        "row = Row('a', 's', 0, 9, 1, Grid(1, 2, 3), 4, 24.0, 4, 8); "
        "picture(Manifest.from_rows([row]), Scale(8, 32), 't'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=False).returncode == 0
