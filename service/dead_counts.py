"""What processes counted that are gone, in one file of each kind: theirs would pile up and slow every scrape."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDED = ("counter", "histogram")
LATEST = "gauge_mostrecent"
BLOCK_BYTES = 65_536
NOBODY = 0  # stands for the process in the names of the merged files; no process has it


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from reading or merging the metric files of a folder for a moment."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def merge_dead(folder: Path) -> None:
    """Merge the files of processes that are gone; to be called `alone`.

    A process that dies between the two last steps, of microseconds, leaves counts that are added once more later.
    """
    files = {path: _pid(path) for path in folder.glob("*.db")}
    dead = {pid for pid in set(files.values()) - {NOBODY} if not _is_alive(pid)}
    for path, pid in sorted(files.items()):
        if pid in dead:
            kind = path.stem.rpartition("_")[0]
            if (kind in ADDED or kind == LATEST) and _used(path):  # empty if its process died as it made it
                _merge(path, folder / f"{kind}_{NOBODY}.db", is_added=kind in ADDED)
            path.unlink()  # what else there is describes a process that lives


def _merge(source: Path, target: Path, *, is_added: bool) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    merged = target.with_suffix(".part")
    before = target.read_bytes()[: _used(target)] if target.exists() else b""
    merged.write_bytes(before)
    with merged.open("r+b") as file:  # room for both; a mapped file without blocks kills who writes on a full disk
        needed = len(before) + _used(source)
        os.posix_fallocate(file.fileno(), 0, -(-needed // BLOCK_BYTES) * BLOCK_BYTES)
    values = MmapedDict(str(merged))  # type: ignore[no-untyped-call]
    for key, value, at, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
        earlier, earlier_at = values.read_value(key)  # type: ignore[no-untyped-call]
        if is_added:
            values.write_value(key, earlier + value, at)  # type: ignore[no-untyped-call]
        elif at >= earlier_at:
            values.write_value(key, value, at)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]
    merged.replace(target)


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
