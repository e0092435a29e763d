import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from adapt import __main__ as adapt
from tests.training.test_bases import resign
from training.bases import BaseSet, load_base_set, rewrite_manifest, save_base_set
from training.cli import run
from training.commands import COMMANDS
from training.data import load_folder
from training.manifest import BaseSetError, Manifest, Metric, Storage, read_manifest
from training.measure import accuracy_of
from training.storage import restore, subtract

METRIC = Metric(value=0.5, n=2)


def stored(parents: dict[str, str | None], base: BaseSet) -> Manifest:
    """Return the manifest with these ingredients in half precision (None) or as a difference."""
    entries = tuple(
        entry.model_copy(
            update={
                "storage": Storage(
                    kind="delta" if parents[entry.name] else "half",
                    parent=parents[entry.name],
                    original_sha256=entry.sha256,
                    before=METRIC,
                    after=METRIC,
                )
            }
        )
        if entry.name in parents
        else entry
        for entry in base.manifest.ingredients
    )
    return base.manifest.model_copy(update={"ingredients": entries})


DELTAS: dict[str, str | None] = {"linf": "nominal", "nominal": None, "l2": "nominal"}  # l1 stays float32


@pytest.fixture
def compressed(tiny_base_set: Path, tmp_path: Path) -> Path:
    """The tiny base set: nominal in half precision, linf (which comes first) and l2 as differences to it."""
    base = load_base_set(tiny_base_set)
    save_base_set(tmp_path / "compressed", stored(DELTAS, base), base.state_dicts)
    return tmp_path / "compressed"


def test_rounding_stays_within_its_bounds(tiny_base_set: Path, compressed: Path) -> None:
    before, after = load_base_set(tiny_base_set), load_base_set(compressed)
    assert list(after.state_dicts) == list(before.state_dicts)
    for name, state_dict in before.state_dicts.items():
        changed = 0
        for key, tensor in state_dict.items():
            found = after.state_dicts[name][key]
            assert found.dtype == tensor.dtype
            if name == "l1" or not tensor.is_floating_point():
                assert torch.equal(found, tensor)
                continue
            if name == "nominal" or tensor.ndim < 2:
                bound = tensor.abs() * 2**-11 + 2**-25
            else:
                largest = (tensor - after.state_dicts["nominal"][key]).flatten(1).abs().amax(1)
                bound = (largest * 0.004 + 1e-7).reshape(-1, *[1] * (tensor.ndim - 1))
            assert ((found - tensor).abs() <= bound).all()
            changed += int((found != tensor).sum())
        assert (changed > 0) == (name != "l1")


def test_files_shrink_and_other_code_sees_float32(tiny_base_set: Path, compressed: Path) -> None:
    base = load_base_set(compressed)
    numbers = sum(tensor.numel() for tensor in base.state_dicts["l2"].values() if tensor.is_floating_point())
    for name, saved in {"nominal": 2 * numbers, "l2": 3 * numbers, "l1": 0}.items():
        sizes = [(folder / f"{name}.safetensors").stat().st_size for folder in (tiny_base_set, compressed)]
        assert sizes[0] - sizes[1] == pytest.approx(saved, rel=0.3)
    assert {tensor.dtype for tensor in base.model("linf").net.state_dict().values()} == {torch.float32, torch.int64}


def test_a_loaded_base_set_is_saved_to_the_same_files(compressed: Path, tmp_path: Path) -> None:
    base = load_base_set(compressed)
    assert save_base_set(tmp_path / "again", base.manifest, base.state_dicts) == base.manifest


def test_base_sets_in_float32_keep_their_digest(tiny_base_set: Path) -> None:
    manifest = json.loads((tiny_base_set / "manifest.json").read_text())
    assert all("storage" not in ingredient for ingredient in manifest["ingredients"])


def test_a_channel_without_a_difference_is_restored_exactly() -> None:
    parent = {"weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}
    ours = {"weight": parent["weight"].clone()}
    ours["weight"][1] += torch.tensor([0.5, -1.0, 0.25])
    found = restore(subtract(ours, parent), parent)["weight"]
    assert torch.equal(found[[0, 2, 3]], parent["weight"][[0, 2, 3]])
    assert torch.allclose(found[1], ours["weight"][1], atol=0.004)


def test_every_output_channel_has_its_own_scale() -> None:
    parent = {"weight": torch.zeros(2, 3)}
    ours = {"weight": torch.tensor([[1e-4, -5e-5, 2e-5], [100.0, 50.0, -20.0]])}
    found = restore(subtract(ours, parent), parent)["weight"]
    assert ((found - ours["weight"]).abs().amax(1) <= torch.tensor([1e-4, 100.0]) * 0.004).all()


def test_numbers_too_large_for_half_precision_stay_float32(compressed: Path, tmp_path: Path) -> None:
    base = load_base_set(compressed)
    for name in ("nominal", "l2"):
        base.state_dicts[name]["stem.1.running_var"][0] = 1e5
    save_base_set(tmp_path / "large", base.manifest, base.state_dicts)
    for name, state_dict in load_base_set(tmp_path / "large").state_dicts.items():
        assert torch.equal(state_dict["stem.1.running_var"], base.state_dicts[name]["stem.1.running_var"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    {
        "scale of another shape": (
            lambda tensors: tensors.update({"head.weight.scale": torch.ones(1).bfloat16()}),
            r"head\.weight\.scale: expected bfloat16\[3\], got bfloat16\[1\]",
        ),
        "scale of another type": (
            lambda tensors: tensors.update({"head.weight.scale": torch.ones(3)}),
            r"head\.weight\.scale: expected bfloat16\[3\], got float32\[3\]",
        ),
        "difference of another shape": (
            lambda tensors: tensors.update({"head.weight": torch.zeros(3, 1, dtype=torch.int8)}),
            r"head\.weight: expected a difference int8\[3, 16\], got int8\[3, 1\]",
        ),
        "no scale": (
            lambda tensors: tensors.pop("head.weight.scale"),
            r"head\.weight is int8\[3, 16\], expected float32",
        ),
        "no difference": (lambda tensors: tensors.pop("head.weight"), r"head\.weight is missing"),
        "not a number": (
            lambda tensors: tensors["head.weight.scale"].fill_(float("nan")),
            r"found NaN or infinity in head\.weight",
        ),
        "a tensor more": (lambda tensors: tensors.update({"more": torch.zeros(2)}), r"more is not expected"),
        "scale of a vector": (
            lambda tensors: tensors.update({"head.bias.scale": torch.ones(3).bfloat16()}),
            r"head\.bias: expected a difference int8\[3\], got float16\[3\]",
        ),
    }.values(),
)
def test_a_damaged_difference_is_refused(compressed: Path, damage: Callable[..., object], reason: str) -> None:
    path = compressed / "l2.safetensors"
    tensors = safetensors.torch.load_file(path)
    damage(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(BaseSetError, match=r"l2\.safetensors: expected sha256"):
        load_base_set(compressed)
    resign(compressed, "l2")
    with pytest.raises(BaseSetError, match=rf"l2\.safetensors: expected .*{reason}"):
        load_base_set(compressed)


def test_a_difference_in_a_float32_ingredient_is_refused(compressed: Path) -> None:
    (compressed / "l1.safetensors").write_bytes((compressed / "l2.safetensors").read_bytes())
    resign(compressed, "l1")
    with pytest.raises(BaseSetError, match=r"l1\.safetensors: expected the weights .*\.scale is not expected"):
        load_base_set(compressed)


def test_a_missing_parent_file_is_named(compressed: Path) -> None:
    (compressed / "nominal.safetensors").unlink()
    with pytest.raises(BaseSetError, match=r"nominal\.safetensors: expected an ingredient .* found no such file"):
        load_base_set(compressed)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ("l7", "l1 is stored as the difference to 'l7', which is not here"),
        ("l2", "l1 is stored as the difference to 'l2': expected one that is stored in float32 or half precision"),
        ("l1", "l1 is stored as the difference to 'l1': expected one that is stored in float32 or half precision"),
    ],
)
def test_a_difference_needs_a_whole_parent(compressed: Path, parent: str, reason: str) -> None:
    base = load_base_set(compressed)
    with pytest.raises(ValueError, match=reason):
        rewrite_manifest(compressed, stored({"l1": parent}, base))
    raw = json.loads((compressed / "manifest.json").read_text())
    raw["ingredients"][3]["storage"] = raw["ingredients"][0]["storage"] | {"parent": parent}
    (compressed / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BaseSetError, match=rf"manifest\.json: .*{reason}"):
        read_manifest(compressed)


@pytest.mark.parametrize(("kind", "parent"), [("delta", None), ("half", "nominal")])
def test_only_differences_have_a_parent(kind: str, parent: str | None) -> None:
    fields = {"kind": kind, "parent": parent, "original_sha256": "0" * 64, "before": METRIC, "after": METRIC}
    with pytest.raises(ValueError, match=f"storage: {kind} expects"):
        Storage.model_validate(fields)


def compress(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    code = run(COMMANDS, prog="training", description="", args=["compress", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_compresses_and_says_what_it_cost(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "from").mkdir()
    for file in tiny_base_set.iterdir():
        (tmp_path / "from" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "from" / "metrics.jsonl").write_text("{}\n")
    out = tmp_path / "out"
    args = (tmp_path / "from", "--out", out, "--data", image_folder, "--parent", "nominal", "--max-loss", "100")
    code, text, _ = compress(capsys, *args, "--json")
    assert code == 0
    base, before = load_base_set(out), load_base_set(tiny_base_set)
    assert json.loads(text) == base.manifest.model_dump(mode="json")
    assert (out / "metrics.jsonl").read_text() == "{}\n"
    images = load_folder(image_folder, base.manifest.input, base.manifest.class_names)
    for entry, original in zip(base.manifest.ingredients, before.manifest.ingredients, strict=True):
        assert entry.storage is not None
        assert entry.delta_parent == (None if entry.name == "nominal" else "nominal")
        assert entry.storage.original_sha256 == original.sha256
        assert entry.storage.before == Metric(value=accuracy_of(before.model(entry.name), images), n=36)
        assert entry.storage.after == Metric(value=accuracy_of(base.model(entry.name), images), n=36)
    code, _, err = compress(capsys, out, "--out", tmp_path / "twice", "--data", image_folder)
    assert code == 2
    assert "linf is compressed already; compress the base set in float32" in err
    assert not (tmp_path / "twice").exists()


def test_the_command_keeps_moments_and_halves_everything(
    tiny_moments_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--data", image_folder, "--keep", "half", "--max-loss", "100")
    code, text, _ = compress(capsys, tiny_moments_base_set, "--out", tmp_path / "out", *args)
    assert code == 0
    assert text.count("half precision") == 4
    base, before = load_base_set(tmp_path / "out"), load_base_set(tiny_moments_base_set)
    assert base.manifest.moments == before.manifest.moments
    assert {entry.delta_parent for entry in base.manifest.ingredients} == {None}


def test_the_command_refuses_what_costs_too_much(
    tiny_base_set: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = (tiny_base_set, "--out", tmp_path / "out", "--data", image_folder)
    values = iter([0.9, 0.898, 0.9, 0.95, 0.9, 0.897, 0.9, 0.9])  # of linf, nominal, l2, l1: before and after
    monkeypatch.setattr("training.compress.accuracy_of", lambda *_, **__: next(values))
    code, _, err = compress(capsys, *args)
    assert code == 2
    assert err.startswith("error: l2: rounding costs 0.30 points of clean accuracy (n = 36), more than --max-loss 0.2;")
    assert not (tmp_path / "out").exists()
    values = iter([0.9, 0.898, 0.9, 0.95, 0.9, 0.897, 0.9, 0.9])
    code, text, _ = compress(capsys, *args, "--max-loss", "0.3")
    assert code == 0
    assert re.search(r"^l2 +int8 \+ linf +90\.00 +89\.70 +-0\.30$", text, re.MULTILINE)
    assert re.search(r"^nominal +int8 \+ linf +90\.00 +95\.00 +\+5\.00$", text, re.MULTILINE)


def test_bad_options_get_one_line(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (tiny_base_set, "--out", tmp_path / "out", "--data", image_folder)
    code, _, err = compress(capsys, *args, "--parent", "l7")
    assert (code, err) == (2, "error: --parent: expected one of ['linf', 'nominal', 'l2', 'l1'], got 'l7'\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, _, err = compress(capsys, *args)
    assert code == 2
    assert "already exists" in err


def test_a_compressed_base_set_is_searched(
    compressed: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["search", str(compressed), str(image_folder), "--json"]
    assert adapt.main(args) == 0
    assert json.loads(capsys.readouterr().out)["search"]["candidates"] > 4
