import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import deploy.export
from adapt.documents.patch import Patch, PatchError, make_patch
from adapt.documents.soup import BnMode, SoupError, default_soup, make_soup
from deploy.export import check_export, export, read_exported_soup
from deploy.layout import BundleError
from deploy.parity import ParityError, TorchReference
from training.bases import BaseSet, load_base_set
from training.exporting import ExportError

AFFINE = {"linf": 1.25, "nominal": -0.25, "l2": 0.5, "l1": -0.5}
CONVEX = {"linf": 0.1, "nominal": 0.2, "l2": 0.3, "l1": 0.4}


@pytest.fixture(scope="module")
def base(tiny_base_set: Path) -> BaseSet:
    return load_base_set(tiny_base_set)


def run_plain(path: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, 16, 16]]
    logits: np.ndarray = session.run(["logits"], {"images": images})[0]
    return logits


@pytest.mark.parametrize(("coefficients", "bn_mode"), [(AFFINE, "folded"), (CONVEX, "raw")])
def test_exported_file_agrees_with_torch_in_plain_onnxruntime(
    base: BaseSet, reference: TorchReference, tmp_path: Path, batch: Callable[[int], np.ndarray], coefficients, bn_mode
) -> None:
    out = tmp_path / "new" / "soup.onnx"
    export(base, make_soup(base.manifest, coefficients, bn_mode=bn_mode), out)
    onnx.checker.check_model(out, full_check=True)
    for size in (1, 7):
        expected = reference.logits(reference.mix(coefficients, bn_mode), batch(size))
        found = run_plain(out, batch(size))
        assert np.abs(found - expected).max() <= 1e-4
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert [path.name for path in out.parent.iterdir()] == ["soup.onnx"]


def test_file_is_self_contained_and_names_weights_as_timm_does(base: BaseSet, tmp_path: Path) -> None:
    export(
        base,
        make_soup(base.manifest, {"linf": 0.0, "nominal": 1.0, "l2": 0.0, "l1": 0.0}, bn_mode="raw"),
        tmp_path / "a",
    )
    model = onnx.load(tmp_path / "a", load_external_data=False)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    for key, tensor in base.state_dicts["nominal"].items():
        if tensor.is_floating_point():
            assert np.array_equal(stored[key], tensor.numpy())


def test_metadata_says_what_the_file_is(base: BaseSet, tmp_path: Path) -> None:
    soup = make_soup(base.manifest, AFFINE, temperature=1.5)
    export(base, soup, tmp_path / "soup.onnx")
    session = ort.InferenceSession(tmp_path / "soup.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["cat", "dog", "ship"]
    assert json.loads(metadata["input"]) == base.manifest.input.model_dump(mode="json")
    assert json.loads(metadata["coefficients"]) == AFFINE
    assert metadata["base_digest"] == base.manifest.digest
    assert metadata["saucier_version"]
    read = read_exported_soup(tmp_path / "soup.onnx")
    assert (read.temperature, read.bn_mode, read.precision) == (1.5, "folded", "fp32")


def test_half_precision_halves_the_file_and_stays_within_one_percent(
    base: BaseSet, reference: TorchReference, tmp_path: Path, batch: Callable[[int], np.ndarray]
) -> None:
    soup = make_soup(base.manifest, CONVEX)
    export(base, soup, tmp_path / "full.onnx")
    comparisons = export(base, soup, tmp_path / "half.onnx", "fp16")
    onnx.checker.check_model(tmp_path / "half.onnx", full_check=True)
    weights = [
        sum(len(one.raw_data) for one in onnx.load(tmp_path / name).graph.initializer)
        for name in ("full.onnx", "half.onnx")
    ]
    assert weights[1] < 0.51 * weights[0]
    assert max(one.difference for one in comparisons) > 1e-6  # it did compute in half precision
    expected = reference.logits(reference.mix(CONVEX, "folded"), batch(7))
    found = run_plain(tmp_path / "half.onnx", batch(7))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 0.01 * max(1, np.abs(expected).max())
    assert all(one.holds for one in check_export(tmp_path / "half.onnx", base))


@pytest.mark.parametrize(
    ("kind", "bn_mode", "coefficients"),
    [
        ("head", "folded", AFFINE),
        ("statistics", "raw", AFFINE),
        ("both", "raw", AFFINE),
        ("early", "raw", AFFINE),
        ("site", "raw", AFFINE),
    ],
)
def test_exported_file_carries_the_patch(
    base: BaseSet,
    reference: TorchReference,
    patches: dict[str, Patch],
    tmp_path: Path,
    batch: Callable[[int], np.ndarray],
    kind: str,
    bn_mode: BnMode,
    coefficients: dict[str, float],
) -> None:
    out = tmp_path / "soup.onnx"
    soup = make_soup(base.manifest, coefficients, bn_mode=bn_mode, patch=patches[kind])
    export(base, soup, out)
    onnx.checker.check_model(out, full_check=True)
    for size in (1, 7):
        expected = reference.logits(reference.mix(coefficients, bn_mode, patches[kind]), batch(size))
        assert np.abs(run_plain(out, batch(size)) - expected).max() <= 1e-4
    metadata = ort.InferenceSession(out, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["patch"]) == patches[kind].summary.model_dump(mode="json")
    assert read_exported_soup(out).patch == patches[kind]
    assert all(one.holds for one in check_export(out, base))


def test_patch_survives_half_precision(base: BaseSet, patches: dict[str, Patch], tmp_path: Path) -> None:
    soup = make_soup(base.manifest, CONVEX, bn_mode="raw", patch=patches["both"])
    export(base, soup, tmp_path / "half.onnx", "fp16")
    assert read_exported_soup(tmp_path / "half.onnx").patch == patches["both"]
    assert all(one.holds for one in check_export(tmp_path / "half.onnx", base))


def test_check_notices_another_patch(base: BaseSet, patches: dict[str, Patch], tmp_path: Path) -> None:
    path = tmp_path / "soup.onnx"
    export(base, make_soup(base.manifest, CONVEX, patch=patches["head"]), path)
    model = onnx.load(path)
    props = {prop.key: prop.value for prop in model.metadata_props}
    other = make_patch({key: 2 * array for key, array in patches["head"].tensors().items()}, rungs=["head"])
    tensors = base64.b64encode(other.data).decode()
    onnx.helper.set_model_props(model, props | {"patch_tensors": tensors})
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"malformed metadata, .*patch: expected tensors with SHA-256"):
        check_export(path, base)
    onnx.helper.set_model_props(model, props | {"patch_tensors": tensors, "patch": other.summary.model_dump_json()})
    onnx.save(model, path)
    assert not any(one.holds for one in check_export(path, base))


def test_patch_that_does_not_fit_is_not_exported(base: BaseSet, tmp_path: Path) -> None:
    patch = make_patch({"neck.weight": np.zeros(3, dtype=np.float32)}, rungs=["head"])
    with pytest.raises(PatchError, match=r"'neck.weight' of shape \(3,\) does not fit"):
        export(base, make_soup(base.manifest, CONVEX, patch=patch), tmp_path / "soup.onnx")
    assert list(tmp_path.iterdir()) == []


def test_layernorm_net_exports(tiny_ln_base_set: Path, tmp_path: Path) -> None:
    base = load_base_set(tiny_ln_base_set)
    comparisons = export(base, default_soup(base.manifest), tmp_path / "soup.onnx")
    assert [one.batch for one in comparisons] == [1, 7]
    assert all(one.difference <= 1e-4 for one in comparisons)


def test_wrong_weights_fail_loudly_and_keep_the_older_file(
    base: BaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "soup.onnx").write_bytes(b"older")
    real = deploy.export.embed
    monkeypatch.setattr(deploy.export, "embed", lambda skeleton, row: real(skeleton, row * np.float32(1.01)))
    with pytest.raises(ParityError, match=r"ONNX Runtime and torch differ by .* in the logits of 'soup'"):
        export(base, default_soup(base.manifest), tmp_path / "soup.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"soup.onnx": b"older"}


def test_network_over_two_gigabytes_is_refused(base: BaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 20_000)
    with pytest.raises(ExportError, match="bytes of weights, expected fewer than 2 GiB"):
        export(base, default_soup(base.manifest), tmp_path / "soup.onnx")
    assert list(tmp_path.iterdir()) == []


def test_soup_of_another_base_set_is_refused(base: BaseSet, tmp_path: Path) -> None:
    other = default_soup(base.manifest.model_copy(update={"digest": "0" * 64}))
    with pytest.raises(SoupError, match="digest 000000000000"):
        export(base, other, tmp_path / "soup.onnx")


def test_check_notices_a_changed_weight(base: BaseSet, tmp_path: Path) -> None:
    path = tmp_path / "soup.onnx"
    export(base, default_soup(base.manifest), path)
    assert all(one.holds for one in check_export(path, base))
    model = onnx.load(path)
    bias = next(one for one in model.graph.initializer if one.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3), "head.bias"))
    onnx.save(model, path)
    assert not any(one.holds for one in check_export(path, base))


def test_files_of_others_are_refused(base: BaseSet, tmp_path: Path) -> None:
    path = tmp_path / "soup.onnx"
    with pytest.raises(BundleError, match=r"soup\.onnx: expected an ONNX file, found no such file"):
        check_export(path, base)
    path.write_bytes(b"not an ONNX file")
    with pytest.raises(BundleError, match=r"soup\.onnx: expected an ONNX file"):
        check_export(path, base)
    export(base, default_soup(base.manifest), path)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"base_set": "tiny"})
    onnx.save(model, path)
    with pytest.raises(BundleError, match="found no 'base_digest' in its metadata"):
        check_export(path, base)
