import json
import shutil
from pathlib import Path

import onnx
import pytest

from adapt.documents.patch import Patch
from adapt.documents.soup import make_soup, write_soup
from deploy.__main__ import main
from deploy.making import parse_coefficients
from training.manifest import read_manifest


def run_json(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict]:
    code = main([*args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_bundle_goes_beside_the_base_set(
    tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_base_set, tmp_path / "base"))
    code, data = run_json(capsys, "bundle", str(base))
    assert code == 0
    folder = base / "bundle" / read_manifest(base).digest
    assert data["bundle"] == str(folder)
    assert data["bytes"]["rows_folded.bin"] == (folder / "rows_folded.bin").stat().st_size
    code, data = run_json(capsys, "check", str(folder), str(base))
    assert (code, data["holds"]) == (0, True)
    assert data["max_difference"] <= 1e-4


def test_export_takes_a_soup_file_or_coefficients(
    tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(tiny_base_set)
    out = str(tmp_path / "soup.onnx")
    code, data = run_json(
        capsys, "export", str(tiny_base_set), "--out", out, "--coefficients", "linf=1.25,l1=-0.25", "--temperature", "2"
    )
    assert code == 0
    assert data["coefficients"] == {"linf": 1.25, "nominal": 0.0, "l2": 0.0, "l1": -0.25}
    coefficients = dict.fromkeys(manifest.ingredient_names, 0.25)
    write_soup(tmp_path / "soup.json", make_soup(manifest, coefficients, bn_mode="raw"))
    code, data = run_json(
        capsys, "export", str(tiny_base_set), "--out", out, "--soup", str(tmp_path / "soup.json"), "--precision", "fp16"
    )
    assert (code, data["bn_mode"], data["coefficients"]) == (0, "raw", coefficients)
    assert main(["check", out, str(tiny_base_set)]) == 0
    assert "soup" in capsys.readouterr().out


def test_export_and_check_take_the_patch_along(
    tiny_base_set: Path, tmp_path: Path, patches: dict[str, Patch], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(tiny_base_set)
    coefficients = {"linf": 1.25, "nominal": -0.25, "l2": 0.0, "l1": 0.0}
    soup = make_soup(manifest, coefficients, bn_mode="raw", patch=patches["statistics"])
    write_soup(tmp_path / "soup.json", soup)
    out = str(tmp_path / "soup.onnx")
    code, data = run_json(capsys, "export", str(tiny_base_set), "--out", out, "--soup", str(tmp_path / "soup.json"))
    assert (code, data["holds"]) == (0, True)
    assert data["patch"] == {"digest": patches["statistics"].digest, "recalibrated": 64, "rungs": ["statistics"]}
    code, data = run_json(capsys, "check", out, str(tiny_base_set))
    assert (code, data["holds"]) == (0, True)
    (tmp_path / "patch.safetensors").unlink()
    assert main(["export", str(tiny_base_set), "--out", out, "--soup", str(tmp_path / "soup.json")]) == 2
    assert "patch.safetensors: expected the patch of the soup" in capsys.readouterr().err


def test_check_exits_with_1_where_parity_does_not_hold(
    tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "soup.onnx"
    assert main(["export", str(tiny_base_set), "--out", str(path)]) == 0
    model = onnx.load(path)
    props = {prop.key: prop.value for prop in model.metadata_props}
    props["coefficients"] = json.dumps({"linf": 0.5, "nominal": 0.5, "l2": 0, "l1": 0})
    onnx.helper.set_model_props(model, props)
    onnx.save(model, path)
    assert main(["check", str(path), str(tiny_base_set)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coefficients", "linf=0.5"], "sum to 1"),
        (["--coefficients", "linf=0.5,l7=0.5"], "got ['l7']"),
        (["--coefficients", "linf"], "expected name=number"),
        (["--coefficients", "linf=1", "--soup", "soup.json"], "got both"),
        (["--soup", "missing.json"], "missing.json"),
        (["--coefficients", "linf=40,l2=-39", "--bn-mode", "raw"], "variance"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["export", str(tiny_base_set), "--out", str(tmp_path / "soup.onnx"), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_coefficients_are_parsed() -> None:
    assert parse_coefficients("a=0.5, b=-1e-1") == {"a": 0.5, "b": -0.1}
    for text in ("", "a", "a=", "=1", "a=1,a=2", "a=1,,b=2"):
        with pytest.raises(ValueError, match="expected name=number"):
            parse_coefficients(text)
