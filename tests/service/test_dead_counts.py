"""Counts of processes that are gone: nothing is lost, nothing counted twice, and no file is left of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.dead_counts import alone, merge_dead

WORK = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
images = Counter("images", "", ["name"])
for name in sys.argv[1:]:
    images.labels(name).inc(len(name))
Histogram("seconds", "", buckets=(1, 10)).observe(len(sys.argv))
Gauge("alive", "", multiprocess_mode="livesum").set(1)
Gauge("latest", "", multiprocess_mode="mostrecent").set(len(sys.argv))
print(os.getpid())
os._exit(9)
"""


def count(folder: Path, *names: str) -> int:
    """Let a process count a name each by its length, and be killed; return its id."""
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-u", "-c", WORK, *names], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    return int(done.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def shown(folder: Path) -> dict[str, float]:
    from prometheus_client.multiprocess import MultiProcessCollector

    samples = [sample for metric in MultiProcessCollector(None).collect() for sample in metric.samples]
    return {"_".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_counts_of_the_dead_are_kept_once_and_their_files_go(folder: Path) -> None:
    many = [f"name-{number}" for number in range(700)]  # more than a file has room for at first
    count(folder, "a", "bb")
    count(folder, "bb", *many)
    before = {name: value for name, value in shown(folder).items() if not name.startswith("alive")}
    assert before["images_total_bb"] == 4
    for _ in range(3):  # merged once, however often it is looked at
        with alone(folder):
            merge_dead(folder)
        assert shown(folder) == before
    assert {path.name for path in folder.glob("*.db")} == {"counter_0.db", "histogram_0.db", "gauge_mostrecent_0.db"}
    dead = count(folder, "bb")
    (folder / f"counter_{dead + 2**22}.db").touch()  # of a process that was killed as it made it; no pid is as large
    with alone(folder):
        merge_dead(folder)
    after = shown(folder)
    assert (after["images_total_bb"], after["images_total_a"]) == (6, 1)
    assert (after["seconds_count"], after["latest"]) == (3, 2)
    assert after["seconds_bucket_10.0"] == 2


CRASH = """
import os, sys
from pathlib import Path
steps = int(sys.argv[2])

def counted(action):
    def act(*args, **kwargs):
        global steps
        steps -= 1
        if steps < 0:
            os._exit(9)
        return action(*args, **kwargs)
    return act

for name in ("replace", "unlink", "write_bytes", "write_text"):
    setattr(Path, name, counted(getattr(Path, name)))
from service.dead_counts import alone, merge_dead
with alone(Path(sys.argv[1])):
    merge_dead(Path(sys.argv[1]))
"""


def test_a_crash_at_any_step_counts_nothing_twice(folder: Path) -> None:
    before: dict[str, float] = {}
    for steps in range(100):
        count(folder, "a", "bb")
        done = subprocess.run([sys.executable, "-c", CRASH, str(folder), str(steps)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == 9
        with alone(folder):
            merge_dead(folder)
        before = shown(folder)
        assert (before["images_total_a"], before["images_total_bb"]) == (steps + 1, 2 * (steps + 1))
        assert before["seconds_count"] == steps + 1
    else:
        pytest.fail("it never ended")
    assert steps > 6
    assert shown(folder)["images_total_a"] == steps + 1
    assert not list(folder.glob("*.json")) + list(folder.glob("*.part"))


def test_what_lives_is_left_alone(folder: Path) -> None:
    dead = count(folder, "a")
    for path in folder.glob(f"*_{dead}.db"):
        path.rename(path.with_name(path.name.replace(f"_{dead}.db", f"_{os.getpid()}.db")))
    before = {path.name: path.read_bytes() for path in folder.glob("*.db")}
    with alone(folder):
        merge_dead(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.db")} == before
