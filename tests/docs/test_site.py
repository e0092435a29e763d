"""The site builds without a warning: every page is in the navigation, every link and anchor leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        config,
        "--site-dir",
        out,
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("index", "tutorial/photos", "reference/cli", "project/EXPERIMENTS", "results/gate/REPORT"):
        text = (tmp_path / f"{name}.html").read_text()
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]*)\"", text)
        assert not loaded, name
    page = (tmp_path / "explanation" / "evidence.html").read_text()
    assert 'href="../results/gate/REPORT.html#many-looks"' in page
    assert not (tmp_path / "tools").exists()


def test_a_link_to_no_anchor_stops_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[two](#nowhere)\n")
    config = tmp_path / "mkdocs.yml"
    text = (ROOT / "mkdocs.yml").read_text()
    without_pages = re.sub(r"(?ms)^(hooks|nav|exclude_docs|not_in_nav):.*?(?=^\w|\Z)", "", text)
    config.write_text(without_pages)
    done = build(tmp_path / "site", config)
    assert done.returncode == 1
    assert "#nowhere" in done.stderr + done.stdout
