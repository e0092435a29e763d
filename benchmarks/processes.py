"""What Linux knows of a server's processes: memory, age, and which of them answers on a connection."""

import os
import re
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20


class Memory(NamedTuple):
    """Memory of one process in MiB."""

    rss: float  # all that is in memory, shared or not
    pss: float  # pages shared by n processes count 1/n: sums of it count each page once
    anonymous: float  # its own: heap and stacks
    private: float  # that no other process maps: what is free again when it ends (USS)


def memory(pid: int) -> Memory:
    """Return the memory of a process now."""
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text())
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return Memory(fields["Rss"], fields["Pss"], fields["Anonymous"], private)


def peak_rss(pid: int) -> float:
    """Return the largest RSS in MiB that a process has had since its start."""
    return _fields(Path(f"/proc/{pid}/status").read_text())["VmHWM"]


def mapped(pid: int, suffix: str) -> tuple[float, float]:
    """Return (Rss, Private) in MiB of the files whose path has this end, as mapped by a process."""
    rss = private = 0.0
    for path, block in re.findall(
        r"^[\da-f]+-\S+ \S+ \S+ \S+ \d+ +(\S*)\n((?:\w+:.*\n)*)", Path(f"/proc/{pid}/smaps").read_text(), re.MULTILINE
    ):
        if path.endswith(suffix):
            fields = _fields(block)
            rss += fields["Rss"]
            private += fields["Private_Clean"] + fields["Private_Dirty"]
    return rss, private


def is_alive(pid: int) -> bool:
    """Say if a process runs; one that was killed may wait to be noticed."""
    return Path(f"/proc/{pid}").exists() and _stat(pid)[0] not in "ZX"


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def age_seconds(pid: int) -> float:
    """Return how long ago a process was started."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def accepted_by(pids: list[int], server_port: int, client_port: int) -> int | None:
    """Return which process has the server's end of a connection on loopback; None while nobody has accepted it."""
    ends = f"0100007F:{server_port:04X} 0100007F:{client_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        if ends in line:
            socket = f"socket:[{line.split()[9]}]"
            for pid in pids:
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    if descriptor.is_symlink() and str(descriptor.readlink()) == socket:
                        return pid
    return None


def _fields(block: str) -> dict[str, float]:
    return {name: int(kib) * 1024 / MIB for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", block, re.MULTILINE)}


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: the second, the command's name, may have blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
