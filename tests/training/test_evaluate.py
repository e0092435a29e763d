import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import CLASSES
from tests.training.conftest import Trained
from training.cli import run
from training.evaluate import Evaluate, evaluate_classifier, evaluation_threats, load_images
from training.manifest import Manifest, ThreatModel, read_manifest
from training.splits import DataSpec, Splits, load_splits

THREATS = (ThreatModel(norm="Linf", eps=0.1), ThreatModel(norm="L2", eps=1.5), ThreatModel(norm="L1", eps=6))


def evaluate(*args: object) -> int:
    return run([Evaluate], prog="evaluate", description="", args=[str(arg) for arg in args])


def with_recipe(folder: Path, **recipe: object) -> Manifest:
    manifest = read_manifest(folder)
    return manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update={"recipe": recipe})})


@pytest.mark.parametrize("attack", ["apgd", "pgd"])
def test_attacks_lower_accuracy_and_union_is_the_worst_case_per_image(trained: Trained, attack: str) -> None:
    result = evaluate_classifier(*trained, THREATS, attack=attack, num_steps=5, batch_size=32)
    accuracies = result.accuracies()
    assert list(accuracies) == ["clean", "Linf", "L2", "L1", "union"]
    with torch.no_grad():
        right = trained.model(trained.images).argmax(1) == trained.labels
    assert accuracies["clean"] == pytest.approx(right.float().mean().item())
    robust = [accuracies[threat.norm] for threat in THREATS]
    assert max(robust) < accuracies["clean"]
    assert accuracies["union"] <= min(robust)
    per_image = torch.stack([result.correct[threat.norm] for threat in THREATS]).all(0)
    assert torch.equal(result.union, per_image)
    assert not (per_image & ~right).any()


def test_the_answer_repeats_and_one_norm_does_not_change_another(trained: Trained) -> None:
    once, again = (evaluate_classifier(*trained, THREATS, num_steps=3, seed=4) for _ in range(2))
    alone = evaluate_classifier(*trained, THREATS[1:2], num_steps=3, seed=4)
    assert all(torch.equal(once.correct[name], again.correct[name]) for name in once.correct)
    assert torch.equal(alone.correct["L2"], once.correct["L2"])


def test_several_batches_at_a_time_change_no_answer(trained: Trained) -> None:
    attacked = [evaluate_classifier(*trained, THREATS, num_steps=3, batch_size=16, num_threads=n) for n in (None, 3)]
    assert torch.equal(attacked[0].predicted, attacked[1].predicted)
    assert all(torch.equal(correct, attacked[1].correct[name]) for name, correct in attacked[0].correct.items())


def test_a_larger_radius_breaks_more(trained: Trained) -> None:
    small, large = (
        evaluate_classifier(*trained, (ThreatModel(norm="Linf", eps=eps),), num_steps=5).accuracies()
        for eps in (0.03, 0.3)
    )
    assert large["Linf"] < small["Linf"]


def test_without_threat_models_union_is_clean_accuracy(trained: Trained) -> None:
    accuracies = evaluate_classifier(*trained, ()).accuracies()
    assert set(accuracies) == {"clean", "union"}
    assert accuracies["clean"] == accuracies["union"] > 0.8


def test_evaluation_leaves_the_mode_of_the_model(trained: Trained) -> None:
    trained.model.train()
    before = {key: tensor.clone() for key, tensor in trained.model.state_dict().items()}
    try:
        evaluate_classifier(*trained, THREATS[:1], num_steps=1)
        assert all(part.training for part in trained.model.modules())
        assert all(torch.equal(tensor, before[key]) for key, tensor in trained.model.state_dict().items())
    finally:
        trained.model.eval()


def test_evaluation_is_in_float32_and_leaves_the_setting(trained: Trained) -> None:
    seen: set[tuple[bool, bool]] = set()

    def allowed() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    handle = trained.model.register_forward_pre_hook(lambda module, args: seen.add(allowed()))
    before = allowed()
    try:
        evaluate_classifier(*trained, THREATS[:1], num_steps=1)
    finally:
        handle.remove()
    assert seen == {(False, False)}
    assert allowed() == before == (True, False)


def test_what_cannot_be_evaluated_is_refused(trained: Trained) -> None:
    model, images, labels = trained
    with pytest.raises(ValueError, match="at most one threat model of each norm"):
        evaluate_classifier(model, images, labels, (THREATS[0], THREATS[0]))
    with pytest.raises(ValueError, match="one label for each, got 0 and 0"):
        evaluate_classifier(model, images[:0], labels[:0], THREATS)
    for spoiled, message in ((images + 1, r"in \[0, 1\], got values from 1 to 2"), (images * torch.nan, "got NaN")):
        with pytest.raises(ValueError, match=message):
            evaluate_classifier(model, spoiled, labels, ())
    with pytest.raises(ValueError, match="expected finite logits"):
        evaluate_classifier(torch.nn.Sequential(torch.nn.Flatten(), BrokenLayer()), images, labels, THREATS)


class BrokenLayer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :10] / 0


def test_the_command_prints_what_the_contract_promises(
    tiny_base_set: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_base_set, "--data", image_folder, "--n", 15, "--steps", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["ingredients"]) == ["linf", "nominal", "l2", "l1"]
    for name, row in found["ingredients"].items():
        assert set(row) == {"clean", "Linf", "L2", "L1", "union", "n"}
        assert row["n"] == 15
        for column, (low, high) in found["intervals"][name].items():
            assert 0 <= low <= row[column] <= high <= 1
        assert 0 <= row["union"] <= min(row["Linf"], row["L2"], row["L1"]) <= row["clean"] <= 1
    assert found["threat_models"] == {"Linf": 8 / 255, "L2": 0.5, "L1": 12}
    assert (found["attack"], found["steps"], found["restarts"]) == ("apgd", 2, 1)


def test_the_table_names_n_attack_and_radii(
    tiny_base_set: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_base_set, "--data", image_folder, "--n", 9, "--attack", "pgd", "--steps", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "n = 9 test images" in lines[0]
    assert lines[1].startswith("attack: PGD, 3 steps")
    assert "95 % Wilson intervals" in lines[0]
    assert lines[2].split() == ["ingredient", "clean", "Linf", "8/255", "L2", "0.5", "L1", "12", "union"]
    assert [line.split()[0] for line in lines[3:]] == ["linf", "nominal", "l2", "l1"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_the_seed_chooses_the_same_images_every_time(
    tiny_base_set: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for seed in (1, 1, 2):
        assert evaluate(tiny_base_set, "--data", image_folder, "--n", 9, "--steps", 1, "--seed", seed, "--json") == 0
        outputs.append(json.loads(capsys.readouterr().out)["ingredients"])
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_data_folder_with_parts_gives_its_test_part(
    name: str, tiny_base_set: Path, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()  # need not hold anything: it is not read
    (tmp_path / name).symlink_to(image_folder)
    manifest = read_manifest(tiny_base_set)
    whole, part = load_images(manifest, image_folder), load_images(manifest, tmp_path)
    assert len(part) == 36
    assert part.hashes == whole.hashes
    relative = with_recipe(tiny_base_set, data={"source": "folder", "path": str(tmp_path), "num_validation": 3})
    assert load_images(relative, None).hashes == whole.hashes


def split_by_recipe(base_set: Path, image_folder: Path, path: Path | str) -> tuple[Manifest, Splits]:
    """Return the manifest of a base set trained on a part of a folder, which its recipe calls `path`; the parts."""
    data = {"source": "folder", "path": str(path), "test_fraction": 0.25, "validation_fraction": 0.25}
    manifest = with_recipe(base_set, data=data)
    splits = load_splits(DataSpec.model_validate(data), manifest.input, image_folder)
    origin = manifest.provenance.model_copy(update={"data_hash": splits.train.digest})
    return manifest.model_copy(update={"provenance": origin}), splits


def test_a_folder_that_the_recipe_split_gives_the_part_it_was_not_trained_on(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, splits = split_by_recipe(tiny_base_set, image_folder, "elsewhere")
    assert load_images(manifest, image_folder).hashes == splits.test.hashes
    assert load_images(manifest, image_folder, part="validation").hashes == splits.validation.hashes
    assert not caplog.messages
    shutil.copytree(image_folder, tmp_path / "other")
    (tmp_path / "other" / CLASSES[0] / "0.png").unlink()
    assert len(load_images(manifest, tmp_path / "other")) == 35, "other images are tested as a whole"
    (said,) = caplog.messages
    assert "other: all images are tested: this is not the folder that the recipe split" in said
    assert "\n" not in said


@pytest.mark.parametrize("change", ["removed", "added"])
def test_the_recipes_own_folder_is_refused_after_it_changed(
    change: str, tiny_base_set: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    shutil.copytree(image_folder, folder)
    manifest, splits = split_by_recipe(tiny_base_set, image_folder, folder)
    assert load_images(manifest, None).hashes == load_images(manifest, folder).hashes == splits.test.hashes
    if change == "removed":
        (folder / CLASSES[0] / "0.png").unlink()
    else:
        shutil.copy(folder / CLASSES[1] / "3.png", folder / CLASSES[0] / "more.png")
    for given in (None, folder):
        with pytest.raises(ValueError, match=r"photographs: expected the files that the recipe split .* were added"):
            load_images(manifest, given)


def test_a_folder_may_lack_classes_and_keeps_their_indices(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "ship").symlink_to(image_folder / "ship")
    data = load_images(read_manifest(tiny_base_set), tmp_path)
    assert set(data.labels.tolist()) == {CLASSES.index("ship")}
    assert data.class_names == CLASSES


def test_embedded_digits_need_no_folder(tiny_base_set: Path) -> None:
    manifest = read_manifest(tiny_base_set)
    digits = manifest.model_copy(update={"class_names": tuple("0123456789")})
    assert len(load_images(digits, None)) == 600
    with pytest.raises(ValueError, match=r"expected images of the classes \['cat', 'dog', 'ship'\]"):
        load_images(manifest, None)


def test_radii_can_be_given(tiny_base_set: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [tiny_base_set, "--data", image_folder, "--n", 3, "--steps", 1, "--only", "linf"]
    assert evaluate(*common, "--threat-models", "Linf:4/255", "L1:30", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threat_models"] == {"Linf": 4 / 255, "L2": 0.5, "L1": 30}
    assert list(found["ingredients"]) == ["linf"]


def test_an_existing_record_is_kept(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.csv"
    record.write_text("of last week")
    assert evaluate(tiny_base_set, "--data", image_folder, "--n", 3, "--steps", 1, "--record", record) == 2
    assert "already exists" in capsys.readouterr().err
    assert record.read_text() == "of last week"


def test_radii_come_from_the_recipe_and_else_are_the_usual_ones(tiny_base_set: Path) -> None:
    usual = evaluation_threats(with_recipe(tiny_base_set))
    assert {threat.norm: threat.eps for threat in usual} == {"Linf": 8 / 255, "L2": 0.5, "L1": 12}
    evaluation = {"n": 10, "threat_models": [{"norm": "L2", "eps": 2}]}
    named = evaluation_threats(with_recipe(tiny_base_set, evaluation=evaluation))
    assert {threat.norm: threat.eps for threat in named} == {"L2": 2}, "a norm that the recipe omits is attacked"


def test_usual_radii_follow_the_input_size(tiny_base_set: Path) -> None:
    manifest = with_recipe(tiny_base_set)
    radii = {}
    for side in (64, 160, 224):
        size = manifest.input.model_copy(update={"height": side, "width": side})
        threats = evaluation_threats(manifest.model_copy(update={"input": size}))
        radii[side] = [threat.eps for threat in threats]
    assert radii[64] == pytest.approx([8 / 255, 0.5, 12])
    assert radii[224] == pytest.approx([4 / 255, 2, 255])
    assert radii[160] == pytest.approx([4 / 255, 2 * 160 / 224, 255 * (160 / 224) ** 2])


BAD_INPUT: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "no base set": (lambda base, data: [data / "nothing"], "nothing/manifest.json: expected the manifest"),
    "no data": (lambda base, data: [base, "--data", data / "nothing"], "nothing: expected a folder"),
    "other classes": (lambda base, data: [base, "--data", data.parent], "expected a class folder named one of"),
    "eps of 8": (
        lambda base, data: [base, "--data", data, "--threat-models", "Linf:8"],
        "Linf:8: expected 0 < eps <= 1 on the [0, 1] pixel scale for Linf, got 8 (did you mean 8/255?)",
    ),
    "eps of 0": (lambda base, data: [base, "--data", data, "--threat-models", "Linf:0"], "expected 0 < eps <= 1"),
    "no number": (
        lambda base, data: [base, "--data", data, "--threat-models", "L2:far"],
        'a fraction such as "8/255", got',
    ),
    "eps that is NaN": (lambda base, data: [base, "--data", data, "--threat-models", "L1:nan"], "expected a number or"),
    "unknown norm": (
        lambda base, data: [base, "--data", data, "--threat-models", "linf:0.1"],
        "norm: expected one of Linf, L2, L1, got 'linf' (did you mean Linf?)",
    ),
    "norm without eps": (
        lambda base, data: [base, "--data", data, "--threat-models", "Linf"],
        "expected NORM:EPS such as",
    ),
    "one norm twice": (
        lambda base, data: [base, "--data", data, "--threat-models", "L2:1", "L2:2"],
        "L2 is given twice",
    ),
    "no such ingredient": (lambda base, data: [base, "--data", data, "--only", "linff"], "no ingredient 'linff'"),
    "strong pgd": (lambda base, data: [base, "--data", data, "--strong", "--attack", "pgd"], "leave one out"),
    "record of no format": (lambda base, data: [base, "--data", data, "--record", "a.txt"], "ending in .jsonl or .csv"),
    "no steps": (lambda base, data: [base, "--data", data, "--steps", 0], "greater than or equal to 1"),
    "no such device": (
        lambda base, data: [base, "--data", data, "--device", "abacus"],
        "expected device cpu, cuda or auto, or one of several such as cuda:1, got 'abacus'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_with_one_line_and_code_2(
    tiny_base_set: Path,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[object]],
    message: str,
) -> None:
    assert evaluate(*arguments(tiny_base_set, image_folder)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def test_missing_recipe_data_is_named(tiny_base_set: Path, tmp_path: Path) -> None:
    gone = with_recipe(tiny_base_set, data={"source": "cifar10", "path": str(tmp_path / "gone"), "num_validation": 10})
    with pytest.raises(ValueError, match="gone: found no such data folder; give the images with --data PATH"):
        load_images(gone, None)
    with pytest.raises(ValueError, match="give the images with --data PATH"):
        load_images(with_recipe(tiny_base_set), None)
