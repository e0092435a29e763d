"""The first start of a fresh clone: no base set has its serving bundle yet, and two servers share one home."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.layout import read_info
from tests.service.conftest import Labelled, Server, as_parts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def servers(
    tiny_base_set: Path, tiny_ln_base_set: Path, prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """Two servers whose adapters are done; one bundle in their home was corrupt, and a builder was killed there."""
    folder = tmp_path_factory.mktemp("first")
    bases, home = folder / "bases", folder / "home"
    for source in (tiny_base_set, tiny_ln_base_set):
        shutil.copytree(source, bases / source.name)
    (built,) = (prebuilt_bases / "tiny-ln" / "bundle").iterdir()
    shutil.copytree(built, home / "bundles" / built.name)
    (home / "bundles" / built.name / "rows.bin").write_bytes(b"")
    shutil.copytree(built, home / "bundles" / f".{built.name[:12]}-01234567")
    both = [Server(home, bases, BASE_SET="tiny-ln") for _ in "ab"]
    for number, server in enumerate(both):
        server.bentoml_home, server.log = folder / f"bentoml-{number}", folder / f"{number}.log"
        server.start(wait=False)
    for server in both:
        server.wait_for(lambda server=server: httpx.get(f"{server.url}/readyz").status_code == 200, "readiness", 120)
        server.wait_for(lambda server=server: "the adapter is ready" in server.log.read_text(), "adapter", 120)
    yield both
    assert [server.stop() for server in both] == [0, 0]


def test_both_serve_what_was_built(servers: list[Server], labelled: Labelled) -> None:
    for server in servers:
        answer = server.client.post("/predict", files=as_parts(labelled.files[:3]))
        assert answer.status_code == 200, answer.text
        for worker in server.processes("Saucier"):
            maps = Path(f"/proc/{worker.pid}/maps").read_text() if sys.platform == "linux" else ""
            assert "libtorch" not in maps


def test_logs_say_who_waits_and_what_is_built(servers: list[Server]) -> None:
    log = servers[0].log.read_text() + servers[1].log.read_text()
    assert "the serving bundle of tiny-ln is built again: " in log
    assert "waiting for the adapter to build the serving bundle of tiny-ln" in log
    for number, server in enumerate(servers):
        made = re.findall(r"\] the serving bundle of (\S+) is there after \d+\.\d s$", server.log.read_text(), re.M)
        assert made in ([], ["tiny"], ["tiny-ln", "tiny"]), number  # that of `default` first
    for path in (servers[0].home / "bundles").iterdir():  # once, whoever did it
        asked = len(re.findall(rf"the serving bundle of {read_info(path).base_set} is there after", log))
        assert asked - log.count(f"{path} is there already") == 1


def test_bundles_lie_in_the_home_alone_and_whole(servers: list[Server], prebuilt_bases: Path) -> None:
    built = {path.name for path in prebuilt_bases.glob("*/bundle/*")}
    assert {path.name for path in (servers[0].home / "bundles").iterdir()} == built
    assert servers[0].bases is not None
    assert list(servers[0].bases.glob("*/bundle")) == []


def test_the_other_base_set_is_served_too(servers: list[Server], labelled: Labelled) -> None:
    assert servers[0].client.put("/deployments/other", json={"base_set": "tiny"}).status_code == 201
    for server in servers:
        answer = server.client.post("/predict?deployment=other", files=as_parts(labelled.files[:3]))
        assert answer.status_code == 200, answer.text
