"""What surrounds the objectives: selection, precision, memory, processes, full disks, estimates."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

import training.fit
from tests.training.test_train import PHASES, tiny_recipe
from training.bases import load_base_set
from training.checkpoint import save_atomically
from training.compute import Compute
from training.devices import seconds_of
from training.estimate import estimate
from training.fit import Fit
from training.recipe import Recipe, load_recipe
from training.train import train

CPU = Compute(device="cpu")
ROOT = Path(__file__).parents[2]
VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2},
}


def short(**changes: Any) -> Recipe:
    return tiny_recipe(ingredients=[PHASES[0] | {"epochs": 1} | changes])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_selection_keeps_the_epoch_that_stands_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averages: list[dict[str, torch.Tensor]] = []
    judge = Fit._robust_accuracy

    def note(fit: Fit) -> float:
        averages.append({key: tensor.clone() for key, tensor in fit.average.state_dict().items()})
        judge(fit)
        return [0.2, 0.5, 0.4][len(averages) - 1]

    monkeypatch.setattr(Fit, "_robust_accuracy", note)
    train(short(epochs=3, selection={"n": 20, "num_steps": 2}), tmp_path / "tiny", compute=CPU)
    found = load_base_set(tmp_path / "tiny").state_dicts["linf"]
    assert all(torch.equal(found[key], tensor) for key, tensor in averages[1].items())
    assert [row["validation_robust_accuracy"] for row in rows(tmp_path / "tiny")] == [0.2, 0.5, 0.4]


def test_the_validation_attack_is_real(tmp_path: Path) -> None:
    train(short(selection={"n": 40, "num_steps": 3}), tmp_path / "tiny", compute=CPU)
    (row,) = rows(tmp_path / "tiny")
    assert 0 < row["validation_robust_accuracy"] < row["validation_accuracy"]


def test_the_selection_judges_by_the_largest_radius_of_each_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    judge = training.fit.evaluate_classifier

    def note(*args: Any, **settings: Any) -> Any:
        seen.append((args[3], settings))
        return judge(*args, **settings)

    monkeypatch.setattr(training.fit, "evaluate_classifier", note)
    threats = [{"norm": "Linf", "eps": 0.1}, {"norm": "L2", "eps": 1}, {"norm": "Linf", "eps": 0.05}]
    attack = {"kind": "apgd", "num_steps": 1}
    recipe = short(
        epochs=0.1, objective="sat", threat_models=threats, attack=attack, selection={"n": 20, "num_steps": 2}
    )
    train(recipe, tmp_path / "tiny", compute=CPU)
    ((found, settings),) = seen
    assert {threat.norm: threat.eps for threat in found} == {"Linf": 0.1, "L2": 1}
    assert settings["num_steps"] == 2
    assert set(settings["losses"].values()) == {("ce",)}


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    recipe = short(epochs=0.1)
    work = tmp_path / ".tiny.partial"
    work.mkdir()
    save_atomically({"a": torch.zeros(1)}, work / ".checkpoint.safetensors", {"ingredient": "linf", "progress": "{}"})
    with pytest.raises(ValueError, match="written by another version of Saucier; remove it to begin linf again"):
        train(recipe, tmp_path / "tiny", compute=CPU)


@pytest.mark.parametrize("is_main", [True, False])
def test_only_the_main_process_marks_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_main: bool) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "update", interrupt)
    monkeypatch.setattr(Accelerator, "is_main_process", is_main)
    with pytest.raises(KeyboardInterrupt):
        train(short(), tmp_path / "tiny", compute=CPU)
    assert (tmp_path / ".tiny.partial" / "run.json").exists() == is_main


def test_ingredients_may_have_the_names_of_files_in_the_work_folder(tmp_path: Path) -> None:
    names = ["checkpoint", "run", "metrics", "non-finite-checkpoint-0", "manifest"]
    specs = [PHASES[1] | {"name": name, "parent": None, "epochs": 0.1} for name in names]
    manifest = train(tiny_recipe(ingredients=specs), tmp_path / "tiny", compute=CPU)
    assert manifest is not None
    assert list(load_base_set(tmp_path / "tiny").state_dicts) == names


def test_an_estimate_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []

    def note(work: Callable[[], object], device: torch.device) -> float:
        timed.append(seconds_of(work, device))
        return timed[-1]

    monkeypatch.setattr("training.estimate.seconds_of", note)
    estimate(short(), compute=CPU)
    assert len(timed) == 3 + 1  # a warm-up and two steps, and the attack of the evaluation


SEVERAL = [{"norm": "Linf", "eps": 0.1}, {"norm": "L2", "eps": 1}, {"norm": "L1", "eps": 10}]
ONE = SEVERAL[:1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "threats", "changes"),
    [
        ("eat", [SEVERAL[0], SEVERAL[2]], {}),
        ("max", SEVERAL, {"attack": {"kind": "apgd", "num_steps": {"Linf": 1, "L2": 2, "L1": 3}}}),
        ("trades", ONE, {"attack": {"kind": "apgd", "num_steps": 2, "loss": "kl"}, "options": {"beta": 3}}),
        ("advprop", ONE, {"selection": {"n": 20, "num_steps": 1}}),
        ("pyramid-at", ONE, {"options": {"scales": [8, 4, 1]}}),
        ("adversarial", ONE, {"architecture": VIT | {"kwargs": VIT["kwargs"] | {"drop_path_rate": 0.5}}}),
    ],
)
def test_objectives_train_to_a_base_set_and_through_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, threats: list[Any], changes: dict[str, Any]
) -> None:
    settings = {
        "objective": objective,
        "threat_models": threats,
        "attack": {"kind": "apgd", "num_steps": 2},
        "epochs": 0.3,
    }
    settings |= changes
    network = {"architecture": settings.pop("architecture")} if "architecture" in settings else {}
    recipe = tiny_recipe(ingredients=[PHASES[0] | settings], **network)
    train(recipe, tmp_path / "whole", compute=CPU)
    update, calls = Fit.update, []

    def update_then_interrupt(fit: Fit, *batch: torch.Tensor) -> float:
        calls.append(update(fit, *batch))
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    monkeypatch.setattr(Fit, "update", update_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", compute=CPU)
    train(recipe, tmp_path / "parts", compute=CPU)
    whole, parts = (load_base_set(tmp_path / name).state_dicts["linf"] for name in ("whole", "parts"))
    assert whole.keys() == load_base_set(tmp_path / "whole").model().net.state_dict().keys()
    assert all(torch.equal(parts[key], tensor) for key, tensor in whole.items())


@pytest.mark.slow
def test_micro_batches_sum_up_to_the_batch(tmp_path: Path) -> None:
    """Without BatchNorm and noise, a batch in parts is the batch."""
    recipe = tiny_recipe(
        architecture=VIT,
        ingredients=[PHASES[0] | {"epochs": 0.3, "attack": {"kind": "apgd", "num_steps": 2}}],
    )
    for name, micro_batch in (("whole", None), ("parts", 12)):
        train(recipe, tmp_path / name, compute=Compute(device="cpu", micro_batch=micro_batch))
    ours, theirs = (rows(tmp_path / name)[0]["loss"] for name in ("whole", "parts"))
    assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.fixture
def own_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of a process once it is set: forget it before and after a test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_accelerate")
def test_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    train(short(), tmp_path / "bf16", compute=Compute(device="cpu", precision="bf16", threads=1))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(short(), tmp_path / "fp32", compute=CPU)
    ours, theirs = (rows(tmp_path / name)[0]["loss"] for name in ("bf16", "fp32"))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)
    weights = load_base_set(tmp_path / "bf16").state_dicts["linf"]
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.slow  # the compiler takes a minute
def test_a_compiled_net_has_the_losses_of_an_eager_one(tmp_path: Path) -> None:
    """In processes of their own: the run-time type checks of the tests cannot be compiled."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(short().model_dump_json())
    for name, options in (("eager", []), ("compiled", ["--compile"])):
        command = [sys.executable, "-m", "training", "run", str(recipe), "--out", str(tmp_path / name), *options]
        done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (rows(tmp_path / name)[0]["loss"] for name in ("eager", "compiled"))
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """Through `accelerate launch`, without BatchNorm and noise: gradients are averaged, batches shared out."""
    recipe = tiny_recipe(
        architecture=VIT,
        ingredients=[
            PHASES[0]
            | {"epochs": 1, "attack": {"kind": "apgd", "num_steps": 1}, "selection": {"n": 20, "num_steps": 1}},
            {"name": "nominal", "parent": "linf", "objective": "nominal", "epochs": 1, "lr": 0.05, "batch_size": 64},
        ],
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.model_dump_json())
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    run = [
        "-m",
        "training",
        "run",
        str(path),
        "--out",
        str(tmp_path / "two"),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *run], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["name"] == "tiny"  # one object, from the first process
    train(recipe, tmp_path / "one", compute=CPU)
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=2e-3)
        assert row["validation_accuracy"] == pytest.approx(expected["validation_accuracy"], abs=0.02)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.augmentation import Part

    monkeypatch.setattr("training.fit.part_of", lambda accelerator: Part(0, 3))
    with pytest.raises(ValueError, match="a batch of 32 cannot be shared evenly by 3 processes"):
        train(short(), tmp_path / "tiny", compute=CPU)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    hot = [{"name": "a", "objective": "nominal", "epochs": 2, "lr": 1e30, "warmup_fraction": 0}]
    with pytest.raises(FloatingPointError, match=r"a: the loss is (nan|inf) at step \d+.*saved in") as caught:
        train(tiny_recipe(ingredients=hot), tmp_path / "tiny", compute=CPU)
    assert "\n" not in str(caught.value)
    (saved,) = (tmp_path / ".tiny.partial" / "non-finite").glob("*.safetensors")
    batch = safetensors.torch.load_file(saved)
    assert batch["images"].shape == (128, 3, 16, 16)
    assert batch["labels"].shape == (128,)
    assert not (tmp_path / "tiny").exists()


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    before = {"a": torch.arange(10)}
    save_atomically(before, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint\.safetensors: cannot be written, the file before is intact"):
            save_atomically({"a": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(safetensors.torch.load_file(path)["a"], before["a"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_run_continues(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe(ingredients=[PHASES[0] | {"epochs": 200}]).model_dump_json())
    command = [sys.executable, "-m", "training", "run", str(recipe), "--out", str(tmp_path / "tiny"), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2" in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    saved = tmp_path / ".tiny.partial" / ".checkpoint.safetensors"
    with safetensors.safe_open(saved, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    assert progress["step"] >= 2 * len(progress["losses"])
    assert progress["step"] > 60  # past the second epoch


def test_a_run_from_a_base_set_keeps_its_ingredients_and_adds_others(tmp_path: Path) -> None:
    train(tiny_recipe(ingredients=[PHASES[0]]), tmp_path / "one", compute=CPU)
    more = [PHASES[1] | {"epochs": 0.5}, PHASES[0] | {"name": "far", "parent": "linf", "epochs": 0.5}]
    recipe = tiny_recipe(inherits=["linf"], ingredients=more, name="three")
    train(recipe, tmp_path / "three", start=tmp_path / "one", compute=CPU)
    before, after = load_base_set(tmp_path / "one"), load_base_set(tmp_path / "three")
    assert after.manifest.ingredient_names == ("linf", "nominal", "far")
    assert after.manifest.ingredients[0] == before.manifest.ingredients[0]
    for key, tensor in before.state_dicts["linf"].items():
        assert torch.equal(after.state_dicts["linf"][key], tensor)
    assert not torch.equal(after.state_dicts["far"]["head.weight"], before.state_dicts["linf"]["head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inherits": ["l2"], "ingredients": [PHASES[0] | {"name": "x", "parent": "l2"}]}, r"it lacks \['l2'\]"),
        ({"ingredients": [PHASES[0]]}, r"already has ingredients named \['linf'\]"),
        ({"architecture": VIT, "ingredients": [PHASES[0] | {"name": "x"}]}, "its architecture differs"),
    ],
)
def test_a_base_set_that_does_not_fit_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(tiny_recipe(ingredients=[PHASES[0] | {"epochs": 0.1}]), tmp_path / "one", compute=CPU)
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(**changes), tmp_path / "two", start=tmp_path / "one", compute=CPU)
    with pytest.raises(ValueError, match="give their base set"):
        train(tiny_recipe(inherits=["linf"], ingredients=[PHASES[1]]), tmp_path / "two", compute=CPU)


def test_an_estimate_counts_what_the_net_has(tmp_path: Path) -> None:
    plan = estimate(tiny_recipe(), compute=Compute(device="cpu", micro_batch=16))
    base = tmp_path / "base"
    train(short(epochs=0.1), base, compute=CPU)
    own = load_base_set(base).state_dicts["linf"]
    assert plan.parameters == sum(t.numel() for key, t in own.items() if "running" not in key and "num_" not in key)
    assert plan.macs > 1000 * 16
    assert [cost.steps for cost in plan.ingredients] == [62, 10]
    assert plan.ingredients[0].seconds_per_step > plan.ingredients[1].seconds_per_step / 8  # 32 images against 128
    assert 0 < plan.hours < 0.1
    assert plan.memory_mib == pytest.approx(plan.state_mib + 16 * plan.activations_mib)
    assert "total" in plan.text()
    json.dumps(plan.data())


def write_imagenet(root: Path, image_side: int = 40) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 3)):
        for number in range(4):
            folder = root / part / f"n0{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (image_side, image_side + 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG")
    return root


@pytest.mark.parametrize("name", ["imagenet-vit-b16", "imagenet-resnet50", "cifar10-wrn28-10"])
def test_recipes_of_the_papers_pass_a_dry_run(name: str, tmp_path: Path) -> None:
    """With narrower nets and smaller images, or the CPU would take minutes; everything else as released."""
    raw = load_recipe(Path(name)).model_dump(mode="json")
    raw["data"] |= {"source": "folder", "num_validation": 8}
    if name == "cifar10-wrn28-10":
        raw["architecture"]["kwargs"] = {"depth": 10, "widen_factor": 1}
    else:
        raw["input"] |= {"height": 32, "width": 32}
        narrow = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
        raw["architecture"] = (
            {"name": "vit_base_patch16_224", "kwargs": {"drop_path_rate": 0.1} | narrow}
            if "vit" in name
            else {"name": "resnet10t", "kwargs": {"drop_path_rate": 0.1, "channels": [16, 32, 48, 64]}}
        )
    plan = estimate(Recipe.model_validate(raw), data_path=write_imagenet(tmp_path), compute=CPU)
    assert plan.num_images == 40
    assert [cost.name for cost in plan.ingredients] == ["linf", "nominal", "l2", "l1"]
    assert plan.ingredients[3].seconds_per_step > plan.ingredients[1].seconds_per_step
    assert plan.hours > 0


def test_files_mixing_and_adamw_train(tmp_path: Path) -> None:
    """The ImageNet recipe's ways, end to end and through a resume of nothing: one short epoch on tiny pictures."""
    raw = load_recipe(Path("imagenet-vit-b16")).model_dump(mode="json")
    raw["data"] |= {"num_validation": 8}
    raw["input"] |= {"height": 16, "width": 16}
    raw["architecture"] = VIT
    raw["ingredients"] = [spec | {"epochs": 1, "batch_size": 16} for spec in raw["ingredients"][:2]]
    raw["evaluation"] |= {"n": 8, "num_steps": 2}
    manifest = train(Recipe.model_validate(raw), tmp_path / "out", data_path=write_imagenet(tmp_path), compute=CPU)
    assert manifest is not None
    assert manifest.ingredient_names == ("linf", "nominal")
    assert [row["step"] for row in rows(tmp_path / "out")] == [2, 2]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.compute.get_available_trackers", list)
    with pytest.raises(ValueError, match="tracker wandb: not installed"):
        Compute(device="cpu", tracker="wandb").accelerator()


def test_tensorboard_gets_loss_and_accuracy(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    compute = Compute(device="cpu", tracker="tensorboard", log_dir=str(tmp_path / "logs"))
    train(short(), tmp_path / "tiny", compute=compute)
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs" / "tiny"))
    events.Reload()
    assert {"linf/loss", "linf/validation_accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("linf/loss")) == 2
