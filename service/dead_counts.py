"""The counts of ended processes, in one file of each kind: their own files would pile up and slow every scrape."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from training.documents import Frozen

ADDED = ("counter", "histogram")
LATEST = "gauge_mostrecent"
BLOCK_BYTES = 65_536
PLAN = "merge.json"  # what a merge is about to do
NOBODY = 0  # stands for the process in the names of the merged files; no process has it


class Plan(Frozen):
    """The steps left when all counts have been added up beside the merged files."""

    merged: tuple[str, ...] = Field(description="files whose next state stands beside them")
    gone: tuple[str, ...] = Field(description="files of processes that are gone")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from reading or merging the metric files of a folder for a moment."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def merge_dead(folder: Path) -> None:
    """Merge the files of processes that are gone; to be called `alone`.

    The plan of the merge is written to a file first. If this process dies, the next call completes that plan, so no
    file is counted twice.
    """
    _complete(folder)
    files = {path: _pid(path) for path in folder.glob("*.db")}
    dead = {pid for pid in set(files.values()) - {NOBODY} if not _is_alive(pid)}
    gone = sorted(path for path, pid in files.items() if pid in dead)
    if not gone:
        return
    merged = set()
    for path in gone:
        kind = path.stem.rpartition("_")[0]
        if (kind in ADDED or kind == LATEST) and _used(path):  # empty if its process died as it made it
            target = folder / f"{kind}_{NOBODY}.db"
            _merge(path, target, is_first=target.name not in merged, is_added=kind in ADDED)
            merged.add(target.name)
    # What else there is describes a process that lives.
    plan = Plan(merged=tuple(sorted(merged)), gone=tuple(path.name for path in gone))
    written = folder / f"{PLAN}.part"
    written.write_text(plan.model_dump_json())
    written.replace(folder / PLAN)
    _complete(folder)


def _complete(folder: Path) -> None:
    """Do what is planned; doing it again changes nothing."""
    if not (folder / PLAN).exists():
        return
    plan = Plan.model_validate_json((folder / PLAN).read_text())
    for name in plan.merged:
        part = _part(folder / name)
        if part.exists():
            part.replace(folder / name)
    for name in plan.gone:
        (folder / name).unlink(missing_ok=True)
    (folder / PLAN).unlink()


def _part(target: Path) -> Path:
    return target.with_suffix(".part")


def _merge(source: Path, target: Path, *, is_first: bool, is_added: bool) -> None:
    """Add a file to the next state of a merged one.

    Args:
        source: of a process that is gone.
        target: the merged file, which stays as it is.
        is_first: the next state has nothing yet.
        is_added: values add up; otherwise the latest counts.
    """
    from prometheus_client.mmap_dict import MmapedDict

    merged = _part(target)
    if is_first:
        merged.write_bytes(target.read_bytes()[: _used(target)] if target.exists() else b"")
    before = _used(merged)
    with merged.open("r+b") as file:  # room for both; a mapped file without blocks kills who writes on a full disk
        os.posix_fallocate(file.fileno(), 0, -(-(before + _used(source)) // BLOCK_BYTES) * BLOCK_BYTES)
    values = MmapedDict(str(merged))  # type: ignore[no-untyped-call]
    for key, value, at, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
        earlier, earlier_at = values.read_value(key)  # type: ignore[no-untyped-call]
        if is_added:
            values.write_value(key, earlier + value, at)  # type: ignore[no-untyped-call]
        elif at >= earlier_at:
            values.write_value(key, value, at)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]


def _used(path: Path) -> int:
    """Return how many bytes of a metric file are in use; its first four say so."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), sys.byteorder)


def _pid(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
