"""What the documents say exists: links, files, tests and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
    for path, function in named:
        assert (ROOT / path).is_file(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), (
            f"{path}::{function}"
        )


def test_every_promise_of_the_determinism_page_names_a_test() -> None:
    text = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8")
    promises = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(promises) >= 10
    for promise in promises:
        assert "`tests/" in promise, promise


def test_shell_blocks_of_the_readme_call_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [
        line for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    assert commands
    for command in commands:
        for path in re.findall(r"\b(?:configs|slurm)/[\w/.]+", command):
            assert (ROOT / path).exists(), path
