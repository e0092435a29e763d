import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from pydantic import JsonValue

import deploy.bundle
from deploy.bundle import build_bundle, check_bundle
from deploy.layout import ALIGNMENT, BUNDLE_NAME, MODES, WEIGHTS_LOCATION
from deploy.parity import ParityError, TorchReference, compare, parity_cases
from deploy.runtime import Bundle, BundleError, UnusableSoup, find_bundle
from deploy.skeleton import Skeleton, make_skeleton
from training.bases import load_base_set, rewrite_manifest, save_base_set
from training.exporting import ExportError
from training.manifest import Architecture, BaseSetError, Metric, Storage, read_manifest
from training.models import Classifier

BATCHNORMS = 6  # of the tiny network
SMALL_VIT: dict[str, JsonValue] = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # for processes of our own: tiny networks gain nothing from more


def test_bundle_is_named_by_the_digest_and_opens(tiny_base_set: Path, tiny_bundle_folder: Path) -> None:
    manifest = load_base_set(tiny_base_set).manifest
    assert tiny_bundle_folder.name == manifest.digest
    info = Bundle.open(tiny_bundle_folder, base_digest=manifest.digest).info
    assert info.ingredient_names == manifest.ingredient_names
    assert info.class_names == manifest.class_names
    assert info.input == manifest.input
    assert info.default_coefficients == manifest.default_coefficients
    assert {path.name for path in tiny_bundle_folder.iterdir()} == {BUNDLE_NAME, *info.files}


def test_parity_holds_for_every_soup_mode_and_batch(bundle: Bundle, reference: TorchReference) -> None:
    comparisons = check_bundle(bundle, reference, seed=5)
    assert all(comparison.holds and comparison.tolerance == 1e-4 for comparison in comparisons)
    covered = {(one.name, one.bn_mode, one.batch) for one in comparisons}
    soups = ("linf", "nominal", "l2", "l1", "default", "random")
    assert covered == {(name, mode, size) for name in soups for mode in MODES for size in (1, 7)}


def test_skeleton_keeps_every_batchnorm_with_four_external_inputs(bundle: Bundle) -> None:
    model = onnx.load_model_from_string(bundle.skeleton)
    external = {one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(nodes) == BATCHNORMS
    for node in nodes:
        assert len(node.input) == 5
        assert set(node.input[1:]) <= external


def test_weights_are_external_under_the_names_of_the_state_dict(bundle: Bundle, tiny_base_set: Path) -> None:
    state_dict = next(iter(load_base_set(tiny_base_set).state_dicts.values()))
    floating = {key: tuple(tensor.shape) for key, tensor in state_dict.items() if tensor.is_floating_point()}
    assert {slot.name: slot.shape for slot in bundle.info.tensors} == floating
    assert all(slot.offset % ALIGNMENT == 0 for slot in bundle.info.tensors)
    variances = {slot.name for slot in bundle.info.tensors if slot.is_variance}
    assert variances == {key for key in floating if key.endswith("running_var")}
    for tensor in onnx.load_model_from_string(bundle.skeleton).graph.initializer:
        if tensor.name in floating:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == WEIGHTS_LOCATION
        else:  # what is left inside are constants: mean, std, reshape targets
            assert np.prod(tensor.dims) <= 4


def test_normalisation_is_part_of_the_graph(bundle: Bundle, tiny_base_set: Path) -> None:
    constants = {
        tuple(np.frombuffer(one.raw_data, dtype=np.float32).tolist())
        for one in onnx.load_model_from_string(bundle.skeleton).graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and one.data_location != onnx.TensorProto.EXTERNAL
    }
    spec = load_base_set(tiny_base_set).manifest.input
    assert tuple(np.float32(spec.mean).tolist()) in constants
    assert tuple(np.float32(spec.std).tolist()) in constants


def test_onnxruntime_fuses_every_batchnorm_of_a_session(bundle: Bundle, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    weights = bundle.mix(bundle.info.default_coefficients).view(np.uint8)
    options.add_external_initializers_from_files_in_memory([WEIGHTS_LOCATION], [weights], [weights.nbytes])
    ort.InferenceSession(bundle.skeleton, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["Conv"] + operators["FusedConv"] >= BATCHNORMS
    assert "BatchNormalization" not in operators


def test_files_hold_no_path_of_this_machine(tiny_bundle_folder: Path) -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    for path in tiny_bundle_folder.iterdir():
        content = path.read_bytes()
        assert here not in content
        assert b"site-packages" not in content


def test_building_is_reproducible(tiny_base_set: Path, tiny_bundle_folder: Path, tmp_path: Path) -> None:
    again = build_bundle(tiny_base_set, tmp_path)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in tiny_bundle_folder.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == [again.name]


def test_layernorm_net_needs_one_matrix_of_rows(tiny_ln_base_set: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(build_bundle(tiny_ln_base_set, tmp_path))
    assert bundle.info.distinct_rows == ("rows.bin",)
    assert not any(slot.is_variance for slot in bundle.info.tensors)
    images = np.random.default_rng(0).random((7, 3, 16, 16), dtype=np.float32)
    soup = dict(zip(bundle.info.ingredient_names, (1.25, -0.25, 0.25, -0.25), strict=True))
    reference = TorchReference(load_base_set(tiny_ln_base_set))
    for mode in MODES:
        found = bundle.session(soup, bn_mode=mode).run(images)
        assert np.abs(found - reference.logits(reference.mix(soup, mode), images)).max() <= 1e-4


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(name="resnet18"),
        # Pre-activation: BatchNorm precedes the convolutions, and its activation is part of the same module.
        Architecture(name="resnetv2_18", kwargs={"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64]}),
        Architecture(name="convnext_atto", kwargs={"patch_size": 1, "dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
        # Zeros around what a maximum is taken of, which may be negative.
        Architecture(name="resnetv2_18d", kwargs={"layers": [1, 1], "channels": [16, 32], "stem_type": "fixed"}),
        Architecture(name="densenet121", kwargs={"growth_rate": 4, "block_config": [2, 2]}),
        # Attention with a learnt mask.
        Architecture(name="beit_base_patch16_224", kwargs=SMALL_VIT),
        Architecture(name="vit_srelpos_small_patch16_224", kwargs=SMALL_VIT),
        pytest.param(Architecture(name="mobilenetv3_small_050"), marks=pytest.mark.slow),
    ],
    ids=lambda architecture: architecture.name,
)
def test_timm_networks_pass_the_parity_check(
    base_set_factory: Callable[..., Path], tmp_path: Path, architecture: Architecture
) -> None:
    base = base_set_factory(tmp_path / "base", architecture=architecture, names=("linf", "nominal"))
    folder = build_bundle(base, tmp_path / "bundles")  # raises ParityError otherwise
    assert Bundle.open(folder).session({"linf": 0.3, "nominal": 0.7}).coefficients == {"linf": 0.3, "nominal": 0.7}


def test_default_soup_that_raw_batchnorm_cannot_mix_is_served_folded(tiny_base_set: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base_set, tmp_path / "base"))
    default = {"linf": 30.0, "nominal": -29.0, "l2": 0.0, "l1": 0.0}
    rewrite_manifest(base, read_manifest(base).model_copy(update={"default_coefficients": default}))
    bundle = Bundle.open(build_bundle(base, tmp_path / "bundles"))
    assert bundle.reference_logits(default, bn_mode="folded") is not None
    assert bundle.reference_logits(default, bn_mode="raw") is None
    assert bundle.session(default).bn_mode == "folded"
    with pytest.raises(UnusableSoup, match="variance"):
        bundle.session(default, bn_mode="raw")


def test_sound_bundle_is_not_built_again(
    tiny_base_set: Path, tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.bundle, "make_skeleton", lambda *_: pytest.fail("exported again"))
    assert build_bundle(tiny_base_set, tiny_bundle_folder.parent) == tiny_bundle_folder


def test_corrupt_bundle_is_replaced(tiny_base_set: Path, tiny_bundle_folder: Path, tmp_path: Path) -> None:
    corrupt = Path(shutil.copytree(tiny_bundle_folder, tmp_path / tiny_bundle_folder.name))
    still_open = Bundle.open(corrupt)
    before = still_open.mix(still_open.info.default_coefficients)
    (corrupt / "skeleton.onnx").write_bytes(b"not a graph")
    assert build_bundle(tiny_base_set, tmp_path) == corrupt
    Bundle.open(corrupt)
    assert [path.name for path in tmp_path.iterdir()] == [corrupt.name]
    assert np.array_equal(still_open.mix(still_open.info.default_coefficients), before)


@pytest.mark.slow  # the test of builders that take turns below has all of it but the race for the lock
def test_two_processes_may_build_at_once(tiny_base_set: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy", "bundle", str(tiny_base_set), "--out", str(tmp_path)]
    builders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
        for _ in range(2)
    ]
    for builder in builders:
        _, messages = builder.communicate(timeout=120)
        assert builder.returncode == 0, messages
    (folder,) = tmp_path.iterdir()  # no staging folder is left
    Bundle.open(folder)


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
import deploy.bundle

def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)

deploy.bundle.check_bundle = end
deploy.bundle.build_bundle(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_builder_is_in_nobodys_way(tiny_base_set: Path, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tiny_base_set), str(bundles)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = bundles.iterdir()
    assert (left / BUNDLE_NAME).is_file()  # written, not checked
    (bundles / ".not-ours").mkdir()
    manifest = read_manifest(tiny_base_set)
    assert find_bundle(tiny_base_set, manifest, tmp_path) is None
    folder = build_bundle(tiny_base_set, bundles)
    assert find_bundle(tiny_base_set, manifest, tmp_path) == folder
    assert sorted(path.name for path in bundles.iterdir()) == [".not-ours", folder.name]


def test_builders_take_turns_and_the_second_finds_the_bundle(tiny_base_set: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy", "bundle", str(tiny_base_set), "--out", str(tmp_path)]
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    builders = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in "ab"]
    for builder in builders:
        assert builder.stderr is not None
        assert any("waiting for another process" in line for line in iter(builder.stderr.readline, ""))
    assert list(tmp_path.iterdir()) == []
    os.close(folder)
    logs = [builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("is there already" in log for log in logs) == 1
    (found,) = tmp_path.iterdir()
    Bundle.open(found)


def test_bundles_are_built_where_folders_have_no_locks(
    tiny_base_set: Path, tiny_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = tmp_path / f".{'0' * 12}-{'1' * 8}"  # of a builder that may be alive
    other.mkdir()
    assert build_bundle(tiny_base_set, tmp_path).name == tiny_bundle_folder.name
    assert other.is_dir()


def test_slower_builder_keeps_what_is_there(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    final = Path(shutil.copytree(tiny_bundle_folder, tmp_path / tiny_bundle_folder.name))
    staging = Path(shutil.copytree(tiny_bundle_folder, tmp_path / ".staging"))
    inode = (final / BUNDLE_NAME).stat().st_ino
    deploy.bundle._publish(staging, final, final.name)
    assert (final / BUNDLE_NAME).stat().st_ino == inode


def test_full_disk_leaves_nothing_behind(tiny_base_set: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from deploy.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"  # the rows have 89 kB
        f"sys.exit(main(['bundle', {str(tiny_base_set)!r}, '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 2
    assert f"error: {tmp_path}: cannot write a bundle there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_one_clear_line(tiny_base_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot write a bundle there") as caught:
        build_bundle(tiny_base_set, tmp_path / "file" / "bundles")
    assert "\n" not in str(caught.value)


def test_corrupt_base_set_is_refused(tiny_base_set: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base_set, tmp_path / "base"))
    content = bytearray((base / "l2.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "l2.safetensors").write_bytes(content)
    with pytest.raises(BaseSetError, match=r"l2\.safetensors"):
        build_bundle(base, tmp_path / "bundles")
    assert not (tmp_path / "bundles").exists()


def test_graph_that_computes_something_else_is_not_published(
    tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(classifier: Classifier, image_shape: tuple[int, int, int]) -> Skeleton:
        classifier.mean += 0.01
        return make_skeleton(classifier, image_shape)

    monkeypatch.setattr(deploy.bundle, "make_skeleton", shifted)
    with pytest.raises(ParityError, match=r"differ by .* expected at most 0\.0001"):
        build_bundle(tiny_base_set, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_order_are_not_published(
    tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Skeleton.flatten
    monkeypatch.setattr(Skeleton, "flatten", lambda self, state_dict: real(self, state_dict) * np.float32(1.001))
    with pytest.raises(ParityError):
        build_bundle(tiny_base_set, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_graph_that_does_not_run_fails_the_parity_check(reference: TorchReference) -> None:
    def run(images: np.ndarray) -> np.ndarray:
        if len(images) != 1:
            raise RuntimeError("reshape: expected a batch of 1")
        return np.zeros((1, 3), dtype=np.float32)

    case = next(parity_cases(reference.base, has_modes=True))
    with pytest.raises(ParityError, match="cannot run 'linf' at batch 7: reshape: expected a batch of 1"):
        compare(reference, case, run)


class Folded(torch.nn.Module):
    """Holds a BatchNorm that its forward pass does not use as one, like a graph it was folded out of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 16)
        self.bn = torch.nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1) * self.bn.weight + self.bn.bias


class Branching(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(768, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Folded(), r"expected bn\.\w+ to feed a BatchNormalization node of the graph: it was folded away"),
        (Branching(), "cannot be exported with a free batch size: "),
    ],
    ids=["folded", "branching"],
)
def test_network_that_is_no_skeleton_is_refused(tiny_base_set: Path, net: torch.nn.Module, message: str) -> None:
    spec = load_base_set(tiny_base_set).manifest.input
    with pytest.raises(ExportError, match=message):
        make_skeleton(Classifier(net, spec).eval(), (3, 16, 16))


def test_one_ingredient_is_nothing_to_bundle(base_set_factory: Callable[..., Path], tmp_path: Path) -> None:
    base = base_set_factory(tmp_path / "base", names=("linf",))
    with pytest.raises(BaseSetError, match="expected at least 2 ingredients to mix"):
        build_bundle(base, tmp_path / "bundles")
    assert not (tmp_path / "bundles").exists()


def test_a_compressed_base_set_gives_a_bundle_of_the_weights_as_stored(tiny_base_set: Path, tmp_path: Path) -> None:
    base = load_base_set(tiny_base_set)
    accuracy = Metric(value=0.5, n=2)
    entries = tuple(
        entry.model_copy(
            update={
                "storage": Storage(
                    kind="delta" if position else "half",
                    parent=base.manifest.ingredient_names[0] if position else None,
                    original_sha256=entry.sha256,
                    before=accuracy,
                    after=accuracy,
                )
            }
        )
        for position, entry in enumerate(base.manifest.ingredients)
    )
    manifest = base.manifest.model_copy(update={"ingredients": entries})
    manifest = save_base_set(tmp_path / "compressed", manifest, base.state_dicts)
    bundle = Bundle.open(build_bundle(tmp_path / "compressed", tmp_path / "bundles"), base_digest=manifest.digest)
    reference = TorchReference(load_base_set(tmp_path / "compressed"))
    assert all(comparison.holds for comparison in check_bundle(bundle, reference, seed=5))
