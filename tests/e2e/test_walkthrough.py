import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def walk(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.walkthrough", *map(str, args), "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_walkthrough_ends_with_a_better_model_on_disk(tmp_path: Path) -> None:
    out = tmp_path / "walk"
    done = walk("--out", out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["after"] > found["before"] + 0.1
    assert found["after"] >= found["ladders"]["coefficients"] - 0.02
    assert found["exported"] == pytest.approx(found["after"], abs=0.002)
    assert (found["state"], found["n_support"], found["n_test"]) == ("promoted", 100, 500)
    assert (out / "search" / "report.png").stat().st_size > 10_000
    assert (out / "search" / "soup.json").is_file()
    again = walk("--out", out)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    # The same folders are a user's own, with the base set that was trained.
    own = ("--base", out / "bases" / "digits", "--labelled", out / "labelled", "--unseen", out / "unseen")
    assert json.loads(walk(*own, "--out", tmp_path / "own").stdout)["ladders"] == found["ladders"]
    leak = walk("--base", out / "bases" / "digits", "--labelled", out / "labelled", "--unseen", out / "labelled")
    assert leak.returncode == 2
