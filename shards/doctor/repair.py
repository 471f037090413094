"""Make a dataset sound: another manifest, of the samples that are fit to be trained. Shards are not touched."""

from __future__ import annotations

from shards.counted import counted
from shards.dataset.encoding import check_encoded
from shards.dataset.left_out import LEFT_OUT_NAME, read_left_out, write_left_out
from shards.dataset.manifest import MANIFEST_NAME, write_manifest
from shards.dataset.output import rewriting
from shards.doctor.diagnosis import Diagnosis, rewritten
from shards.errors import InputError
from shards.storage import Storage, open_storage

BEFORE_REPAIR = f"{MANIFEST_NAME}.before-repair"


def repair(diagnosis: Diagnosis) -> list[str]:
    """Write what ``diagnosis`` proposes; a line for each thing done, none where nothing had to be.

    The old manifest stays beside the new one; samples taken out are listed in ``left_out.jsonl``, so that
    neither the doctor nor ``index`` brings them back. The same dataset gives the same bytes. Raises InputError
    where shards could not be read, as their samples may be fine, where an encoding there is unfinished, and where
    no sample would be left.
    """
    root, lines = diagnosis.root, diagnosis.changes.lines()
    storage = open_storage(root)
    check_encoded(storage)
    if found := diagnosis.findings.of("unreadable").count:
        raise InputError(
            f"{root}: {found} samples or shards could not be read; nothing is repaired before the storage works"
        )
    if not lines:
        return []
    if not len(diagnosis.mended):
        raise InputError(
            f"{root}: no sample would be left; {MANIFEST_NAME} stays as it is{rewritten(diagnosis)}"
        )
    with rewriting(storage, diagnosis.seen):
        if diagnosis.changes.left_out:
            write_left_out(storage, [*read_left_out(storage), *diagnosis.changes.left_out])
            listed = counted(len(diagnosis.changes.left_out), "sample")
            lines.append(f"{LEFT_OUT_NAME} keeps {listed} that the shards still hold out of the next index")
        if storage.stat(MANIFEST_NAME):
            name = _free(storage)
            storage.write(name, storage.read(MANIFEST_NAME))
            lines.append(f"kept the manifest as it was in {name}")
        write_manifest(root, diagnosis.mended)
    before = 0 if diagnosis.manifest is None else len(diagnosis.manifest)
    lines.append(f"wrote {MANIFEST_NAME}: {counted(len(diagnosis.mended), 'sample')}, {before:,} before")
    return lines


def _free(storage: Storage) -> str:
    """A name for the old manifest; those of earlier repairs stay."""
    name, number = BEFORE_REPAIR, 1
    while storage.stat(name):
        number += 1
        name = f"{BEFORE_REPAIR}-{number}"
    return name
