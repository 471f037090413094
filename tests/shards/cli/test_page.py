"""The pages: the chain that docs/data.md tells, run as it stands there, and every option that a page names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from shards.cli import app
from shards.dataset.opened import open_dataset
from shards.dataset.sample_json import read_json
from shards.prepare.failures import read_failures
from shards.prepare.tables.rows import read_rows
from shards.prepare.tables.table import read_table
from shards.reader import Reader
from shards.storage import Folder
from tests.support.chat import chat_server
from tests.support.clips import filmed
from tests.support.killing import ROOT, command
from tests.support.models import tiny_model

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SMALL = {"768x448x89,768x448x1": "128x64x9,128x64x1", "LTXV_2B_0.9.5": str(tiny_model())}


def told(page: Path) -> list[list[str]]:
    """The words of each `ltx-shards` command line in a page, without what stands before it."""
    found = re.findall(r"\bltx-shards ([a-z]+\b[^`\n]*)", page.read_text())
    return [shlex.split(line, comments=True) for line in found if "'" not in line]


def test_the_chain_of_the_page_ends_in_a_sound_dataset(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    shutil.copy(filmed("bikes"), tmp_path / "raw")
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    assert block
    lines = [shlex.split(line, comments=True)[1:] for line in block[1].splitlines() if line]
    assert [line[0] for line in lines] == ["split", "caption", "reference", "encode", "doctor", "decode"]
    with chat_server() as server:
        for line in lines:
            words = [_SMALL.get(word, word) for word in line]
            if words[0] == "caption":
                words = [*words[:2], "--endpoint", server.url]
            done = subprocess.run(
                command(*words),
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, f"{words}: {done.stderr}"
    rows = {row.key: row for row in read_table(tmp_path / "clips/dataset.jsonl")}
    dataset = open_dataset(tmp_path / "data/mine")
    numbers = list(range(len(dataset.manifest)))
    # A scene of eight frames is shorter than the bucket: it goes with its caption and its reference.
    (left_out,) = read_failures(Folder(tmp_path / "data/mine"))
    assert set(dataset.manifest.keys) == {key for key, row in rows.items() if row.source != left_out.source}
    assert len(numbers) >= 5
    with Reader(dataset) as reader:
        for sample, meta in zip(reader.read(numbers), read_json(dataset, numbers), strict=True):
            row = rows[sample.key]
            assert (meta["caption"], meta["source"]) == (row.caption, row.source)
            assert re.fullmatch(r"[0-9]+ frames of colour [0-9]\.", row.caption)
            assert [path.relative_to(tmp_path / "clips").as_posix() for path in row.references] == [
                f"references/canny/{row.source}"
            ]
            assert len(sample.references) == 1
    looked_at = read_rows(tmp_path / "look/index.jsonl")
    assert len(looked_at) == len(numbers)
    for entry in looked_at:
        assert entry["caption"] == rows[entry["key"]].caption
        assert entry["references"] == 1
        assert (tmp_path / "look" / entry["media_path"]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_tells_of_commands_and_options_is_there(page: Path) -> None:
    commands = typer.main.get_group(app).commands
    flags = {name: {flag for entry in made.params for flag in entry.opts} for name, made in commands.items()}
    for words in told(page):
        assert words[0] in commands, words
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - flags[words[0]]
        assert not unknown, f"{page.name}: ltx-shards {words[0]} has no {', '.join(sorted(unknown))}"


def test_every_option_in_the_table_of_stages_is_of_its_stage() -> None:
    commands = typer.main.get_group(app).commands
    stages = re.findall(r"^\| `([a-z]+)` \| (.*) \|$", (ROOT / "docs/data.md").read_text(), re.MULTILINE)
    assert len(stages) >= 6
    for name, text in stages:
        known = {flag for entry in commands[name].params for flag in entry.opts}
        told_here = set(re.findall(r"`(--[a-z0-9-]+)", text))
        assert told_here <= known | {"--no-deps"}, f"{name}: {told_here - known}"
