"""The README's curl lines, as printed, against the bundled base set."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.demo.server import serve
from tests.conftest import Shipped

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:3000"


def curl_lines() -> list[str]:
    return [line for line in (ROOT / "README.md").read_text().splitlines() if "curl" in line and ADDRESS in line]


@pytest.mark.slow
@pytest.mark.e2e
def test_the_tour_works_as_printed(shipped: Shipped, tmp_path: Path) -> None:
    lines = curl_lines()
    assert len(lines) == 5
    with serve(tmp_path, shipped.bases, bundles=shipped.bundles) as server:
        answers = [_run(line.replace(ADDRESS, server.url)) for line in lines]
    shown, predicted, adapted, dialled, back = answers
    assert (shown["base_set"], shown["version"]) == ("cifar10", 1)
    assert len(predicted["predictions"][0]["top_k"]) == 3
    assert (adapted["state"], adapted["support"]["n"]) == ("kept", 20)  # as the README says
    assert adapted["version"] == 1
    assert dialled["coefficients"] == {"linf": 0.5, "nominal": 0.5, "l2": 0, "l1": 0}
    assert dialled["version"] > adapted["candidate_version"]
    assert (back["version"], back["coefficients"]) == (1, shown["coefficients"])


def _run(line: str) -> Any:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("curl ", "curl -sS --fail-with-body ")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}: {done.stdout} {done.stderr}"
    return json.loads(done.stdout)
