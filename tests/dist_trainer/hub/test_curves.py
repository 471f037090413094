from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dist_trainer.hub.curves import picture
from dist_trainer.rundir import RunFolder


def test_curves_show_what_was_measured_up_to_the_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert picture(run, 300) is None
    lines = [{"step": step, "train/loss": 1 / step, "train/learning_rate": 1e-4} for step in range(1, 301)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = picture(run, 300)
    assert plain is not None
    assert plain == picture(run, 300)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "figures.jsonl").write_text(
        '{"step": 100, "heldout/loss": 0.5}\n{"step": 400, "heldout/loss": 9}\n'
    )
    shown = picture(run, 300)
    assert shown is not None
    assert (np.asarray(Image.open(io.BytesIO(shown))) != np.asarray(Image.open(io.BytesIO(plain)))).any()
