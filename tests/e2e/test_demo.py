import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("demo", "n_support", "n_test"), [("service.demo", 100, 500), ("examples.demo_photos", 70, 210)]
)
def test_demo_gains_and_loses_nothing(demo: str, n_support: int, n_test: int, tmp_path: Path) -> None:
    # Settings of the caller must not leak into the demo's service.
    environment = {**os.environ, "SAUCIER_BASE_SET": "elsewhere", "SAUCIER_PROMOTE_P": "2"}
    done = subprocess.run(
        [sys.executable, "-m", demo, "--out", str(tmp_path / "demo")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert list(line) == [
        "demo",
        "state",
        "before",
        "after",
        "n_support",
        "n_test",
        "requests",
        "failed",
        "swap_ms",
        "seconds",
    ]
    assert (line["demo"], line["state"], line["failed"]) == ("ok", "promoted", 0)
    assert line["after"] > line["before"] + 0.05
    assert (line["n_support"], line["n_test"]) == (n_support, n_test)
    assert line["requests"] > 50
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    assert not [process for process in psutil.process_iter(["environ"]) if _belongs(process)]


def _belongs(process: psutil.Process) -> bool:
    """A process that the demo started and left behind."""
    return "saucier-demo-" in ((process.info["environ"] or {}).get("SAUCIER_HOME", ""))
