from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams import metadata as hparams_metadata

from dist_trainer.board.moving import animated
from dist_trainer.board.tensorboard import _CHARTS, TensorBoard
from tests.support.curves import curve, events, texts

LENGTHS = np.array([64, 64, 1024, 2048])


def shown(folder: Path, after: int) -> None:
    sink = TensorBoard(folder, after)
    sink.text("card", "| a |")
    sink.lengths("data/tokens", LENGTHS)
    sink.settings({"optimization.learning_rate": 0.5, "model.training_mode": "lora"}, ("train/loss",))
    sink.close(failed=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shown at a run's first launch, and when it goes on."""
    root = tmp_path_factory.mktemp("tensorboard")
    shown(root, 0)
    shown(root, 4)
    return root


def test_the_distribution_of_lengths_is_shown_once(folder: Path) -> None:
    [histogram] = events(folder).Histograms("data/tokens")
    assert histogram.step == 0
    assert (histogram.histogram_value.min, histogram.histogram_value.max) == (64, 2048)
    assert histogram.histogram_value.num == 4


def test_texts_are_markdown(folder: Path) -> None:
    assert set(texts(folder, "card")) == {"| a |"}


def test_charts_group_the_figures(folder: Path) -> None:
    found = events(folder).SummaryMetadata(metadata.CONFIG_SUMMARY_TAG)
    assert found.plugin_data.plugin_name == metadata.PLUGIN_NAME
    [stored, *_] = events(folder).Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(_CHARTS)
    titles = [chart.title for category in layout.category for chart in category.chart]
    assert "held out, by noise level" in titles
    assert len(titles) == len(set(titles))


def test_runs_can_be_compared_by_their_settings(folder: Path) -> None:
    accumulated: EventAccumulator = events(folder)
    content = accumulated.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    info = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert info.hparams["optimization.learning_rate"].number_value == 0.5
    assert info.hparams["model.training_mode"].string_value == "lora"
    content = accumulated.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = hparams_metadata.parse_experiment_plugin_data(content)
    assert [metric.name.tag for metric in experiment.metric_infos] == ["train/loss"]


def test_figures_of_steps_that_come_again_are_not_doubled(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, 0)
    for step in (2, 4, 6):
        first.figures(step, {"heldout/loss": float(step)})
    second = TensorBoard(tmp_path, 4)
    second.figures(6, {"heldout/loss": 8.0})
    assert curve(tmp_path, "heldout/loss") == [(2, 2.0), (4, 4.0), (6, 8.0)]


def test_a_video_moves(tmp_path: Path) -> None:
    frames = np.zeros((4, 8, 16, 3), np.uint8)
    frames[2:] = 255
    sink = TensorBoard(tmp_path, 0)
    sink.video("samples/a", animated(frames, 10), step=3)
    sink.close(failed=False)
    [image] = events(tmp_path).Images("samples/a")
    assert (image.step, image.width, image.height) == (3, 16, 8)
    with Image.open(io.BytesIO(image.encoded_image_string)) as moving:
        assert moving.format == "GIF"
        # Equal frames may be joined, but there is a change.
        assert getattr(moving, "n_frames", 1) >= 2
