"""What an installation takes: everything, everything on PyTorch's CPU build, or a predictor alone."""

import logging
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from packaging.requirements import Requirement

import service.runtimes
from service.adapter.packages import NEEDED, missing_packages
from service.runtimes import check_runtimes, installed_runtimes
from tests.environments import closure, make_environment, num_bytes
from tests.service.conftest import ROOT, Server, as_parts, encode

PREDICTOR = [line for line in (ROOT / "deploy" / "predictor.txt").read_text().splitlines() if not line.startswith("#")]
DEPENDENCIES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
DOCUMENT = ROOT / "docs" / "how-to" / "install.md"
MOST_BYTES = 650e6  # of a predictor, with the larger of the two packages of ONNX Runtime


def here(lines: list[str]) -> list[str]:
    """With the package of ONNX Runtime that is installed here."""
    return [re.sub("^onnxruntime(?=>)", "onnxruntime-gpu", line) for line in lines]


def test_a_predictor_needs_a_part_of_what_everybody_gets() -> None:
    every = {str(Requirement(line.partition(";")[0])): line for line in DEPENDENCIES}
    parts = [str(Requirement(line.partition(";")[0])) for line in PREDICTOR]
    assert set(parts) <= set(every)
    found = closure(here(PREDICTOR))
    assert not found & {"torch", "torchvision", "timm", "triton", "onnx", "onnxscript", "scipy", "scikit-learn"}
    assert [name for name in found if name.startswith("nvidia-cu")] == []
    assert num_bytes(found) <= MOST_BYTES


def test_the_documented_size_of_everything_is_about_right() -> None:
    (documented,) = re.findall(r"Its requirements are much larger, ([\d.]+) GB", DOCUMENT.read_text())
    found = closure(DEPENDENCIES)
    if "triton" not in found:
        pytest.skip("this is PyTorch's CPU build")
    assert num_bytes(found) / 1e9 == pytest.approx(float(documented), abs=0.7)


def test_everything_is_installed_here() -> None:
    assert missing_packages() == []
    assert {"torch", "timm", "onnx", "onnxscript", "scipy"} <= closure(DEPENDENCIES)
    assert set(NEEDED) >= {"torch", "timm"}


def test_pip_keeps_the_cpu_builds_that_are_installed_first() -> None:
    wanted = {found.name: found for found in map(Requirement, DEPENDENCIES)}
    for name, version in (("torch", "2.15.0+cpu"), ("torchvision", "0.29.2+cpu")):
        assert wanted[name].specifier.contains(version)


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64"])
def test_one_package_of_onnx_runtime_is_installed_never_both(machine: str) -> None:
    found = [one for one in map(Requirement, DEPENDENCIES) if one.name.startswith("onnxruntime")]
    chosen = [one.name for one in found if one.marker and one.marker.evaluate({"platform_machine": machine})]
    assert chosen == ["onnxruntime-gpu" if machine in ("x86_64", "AMD64") else "onnxruntime"]


def test_two_packages_of_onnx_runtime_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_runtimes()
    assert len(installed_runtimes()) == 1
    assert caplog.messages == []
    monkeypatch.setattr(service.runtimes, "RUNTIMES", ("numpy", "onnxruntime-gpu"))  # any two that are there
    with caplog.at_level(logging.WARNING):
        check_runtimes()
    assert "`pip uninstall numpy onnxruntime-gpu`, then install the one you want" in caplog.messages[0]


class PredictorServer(Server):
    """A server in an environment that has what a predictor needs and nothing else; its code is a copy."""

    def __init__(self, folder: Path, bases: Path) -> None:
        super().__init__(folder / "home", bases, BASE_SET="tiny")
        self.folder = folder / "work"
        python = make_environment(folder / "venv", only=closure(here(PREDICTOR)))
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        for name in ("training", "adapt", "deploy", "service"):
            shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.folder.mkdir()
        self.python, self.command = python, (str(python), "-m", "service", "serve")


@pytest.fixture
def predictor(prebuilt_bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PredictorServer]:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    server = PredictorServer(tmp_path, prebuilt_bases)
    server.start()
    yield server
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.e2e
def test_a_predictor_alone_classifies_and_says_what_it_leaves_out(predictor: PredictorServer) -> None:
    imports = subprocess.run([predictor.python, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in imports.stderr
    files = [encode(pixels) for pixels in _pictures()]
    answer = predictor.client.post("/predict", files=as_parts(files))
    assert answer.status_code == 200, answer.text
    dial = predictor.client.put("/deployments/default/soup", json={"version": 1})
    assert dial.status_code == 200
    labels = '["' + answer.json()["predictions"][0]["label"] + '"]'
    job = predictor.client.post("/adapt", files=as_parts(files[:1]), data={"labels": labels})
    assert (job.status_code, job.json()["state"]) == (202, "queued")  # for an adapter elsewhere
    log = predictor.log.read_text()
    assert log.count("not installed: torch, timm, ") == 1  # the adapter's process stays
    assert "leaves adaptations to an adapter elsewhere" in log


@pytest.mark.slow
@pytest.mark.e2e
def test_commands_that_need_more_than_a_predictor_say_so(predictor: PredictorServer) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SAUCIER_")}
    place: Any = {"cwd": predictor.folder, "env": environment}
    for words in (["adapt", "search", "--help"], ["train", "digits"], ["bundle", "bases"]):
        command = [predictor.python, "-m", "service.saucier", *words]
        done = subprocess.run(command, **place, capture_output=True, text=True, check=False)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2, line
        assert re.fullmatch(r"error: expected the module '\w+', which is not installed .*`pip install saucier`.*", line)
    for words in (
        ["--help"],
        ["serve", "--help"],
        ["data", "--help"],
        ["keys", "add", "--help"],
        ["db", "check", "--help"],
    ):
        subprocess.run([predictor.python, "-m", "service.saucier", *words], **place, check=True)


def _pictures() -> Iterator[npt.NDArray[np.uint8]]:
    yield from np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
