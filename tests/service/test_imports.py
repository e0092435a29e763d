"""A predictor stays small: it never imports torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module", ["service.app", "service.http.api", "service.prediction.predictor", "service.store.registry"]
)
def test_predictor_modules_leave_torch_alone(module: str, tmp_path: Path) -> None:
    code = (
        f"import {module}, sys; unwanted = ('torch', 'timm', 'torchvision', 'onnx', 'sklearn', 'alembic'); "
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BENTOML_HOME": str(tmp_path / "bentoml")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_service_makes_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import service.app"],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "SAUCIER_HOME": str(tmp_path / "saucier"),
            "BENTOML_HOME": str(tmp_path / "bentoml"),
        },
        capture_output=True,
        check=True,
    )
    assert not (tmp_path / "saucier").exists()
