"""The house's arrows: shards <- dist_trainer <- launch, one door to deepspeed, login nodes without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {"shards": 0, "dist_trainer": 1, "launch": 2}
FILES = sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Modules a file imports when it runs, also inside functions; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = LAYERS[path.relative_to(ROOT).parts[0]]
    against = [name for name in imported(path) if LAYERS.get(name.split(".")[0], -1) > own]
    assert not against


def test_one_file_imports_deepspeed() -> None:
    doors = {path for path in FILES for name in imported(path) if name.split(".")[0] == "deepspeed"}
    assert doors == {ROOT / "dist_trainer" / "model" / "engine.py"}


def test_one_model_family_is_known_to_models_and_exports_alone() -> None:
    """A second family is an entry in `FAMILIES`, and its names for export."""
    knowing = {
        path.relative_to(ROOT / "dist_trainer").parts[0]
        for path in FILES
        for name in imported(path)
        if name.startswith("dist_trainer.model.ltx")
    }
    assert knowing == {"model", "exporting"}


def test_there_are_no_import_circles() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    arrows = {
        name: {other if other in modules else other.rpartition(".")[0] for other in imported(path)}
        & modules.keys()
        for name, path in modules.items()
    }

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in arrows[name]:
                visit(other, (*trail, name))
            done.add(name)

    done: set[str] = set()
    for name in modules:
        visit(name, ())


@pytest.mark.parametrize(
    "module",
    [
        "launch",
        "launch.ended.after",
        "launch.ended.cause",
        "launch.ended.requeue",
        "launch.cli",
        "launch.local",
        "launch.demo",
        "launch.learned",
        "launch.lessons",
        "launch.queueing.forecast",
        "launch.resuming",
        "launch.runs",
        "launch.session",
        "launch.looking.status",
        "launch.stopping",
        "launch.queueing.pipeline",
        "launch.queueing.job",
        "launch.queueing.submit",
        "dist_trainer",
        "dist_trainer.config",
        "dist_trainer.feed.data",
        "dist_trainer.model.start",
        "dist_trainer.model.weights",
        "dist_trainer.provenance",
        "dist_trainer.schedule",
        "dist_trainer.validation.cost",
        "dist_trainer.validation.request",
        "dist_trainer.cli",
        "shards.cli",
        "shards.plan",
        "shards.pack",
        "shards.efficiency",
        "shards.dataset.manifest",
        "shards.dataset.info",
        "shards.dataset.index",
        "shards.doctor.diagnose",
    ],
)
def test_imports_without_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
