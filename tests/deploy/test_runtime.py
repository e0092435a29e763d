import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import deploy.expected
import deploy.runtime
from adapt.documents.patch import Patch
from adapt.documents.soup import BnMode
from adapt.networks.prepared import PreparedBase
from deploy.expected import FOLDER
from deploy.layout import BUNDLE_NAME, MODES
from deploy.parity import TorchReference
from deploy.runtime import Bundle, BundleError, SoupSession, UnusableSoup, find_bundle
from deploy.session import CPU, CUDA, _cuda_device_exists
from training.manifest import read_manifest

ROOT = Path(__file__).parents[2]
NAMES = ("linf", "nominal", "l2", "l1")
AFFINE = dict(zip(NAMES, (1.25, -0.25, 0.5, -0.5), strict=True))
CONVEX = dict(zip(NAMES, (0.1, 0.2, 0.3, 0.4), strict=True))
Batch = Callable[[int], np.ndarray]


def one_hot(chosen: str) -> dict[str, float]:
    return {name: float(name == chosen) for name in NAMES}


def assert_same_logits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_predictor_side_imports_neither_torch_nor_exporters() -> None:
    code = (
        "import sys, deploy.runtime, training.images, adapt.documents.soup\n"
        "heavy = {'torch', 'timm', 'onnx', 'onnxscript', 'onnx_ir', 'torchvision'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("bn_mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_one_hot_soup_is_that_ingredient(
    bundle: Bundle, reference: TorchReference, batch: Batch, name: str, bn_mode: BnMode, size: int
) -> None:
    images = batch(size)
    found = bundle.session(one_hot(name), bn_mode=bn_mode).run(images)
    # Folding does not change what an ingredient computes, so its own weights are the reference in both modes.
    assert_same_logits(found, reference.logits(reference.base.state_dicts[name], images))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(("coefficients", "bn_mode"), [(AFFINE, "folded"), (CONVEX, "folded"), (CONVEX, "raw")])
def test_any_soup_agrees_with_torch(
    bundle: Bundle,
    reference: TorchReference,
    batch: Batch,
    coefficients: dict[str, float],
    bn_mode: BnMode,
    size: int,
) -> None:
    expected = reference.logits(reference.mix(coefficients, bn_mode), batch(size))
    assert_same_logits(bundle.session(coefficients, bn_mode=bn_mode).run(batch(size)), expected)


def test_modes_differ_where_soups_are_mixed(bundle: Bundle, batch: Batch) -> None:
    folded, raw = (bundle.session(CONVEX, bn_mode=mode).run(batch(7)) for mode in MODES)
    assert np.abs(folded - raw).max() > 1e-3


@pytest.mark.parametrize("bn_mode", MODES)
def test_one_hot_mix_is_the_row_bit_for_bit(bundle: Bundle, bn_mode: BnMode) -> None:
    for position, name in enumerate(NAMES):
        assert np.array_equal(bundle.mix(one_hot(name), bn_mode=bn_mode), bundle.rows[bn_mode][position])


def test_order_of_coefficients_does_not_matter(bundle: Bundle) -> None:
    backwards = dict(reversed(AFFINE.items()))
    assert np.array_equal(bundle.mix(AFFINE), bundle.mix(backwards))


def test_mix_accumulates_in_float64_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    vector = [0.3, 1.1, -0.4]
    expected = (np.array(vector) @ rows.astype(np.float64)).astype(np.float32)
    monkeypatch.setattr(deploy.runtime, "MIX_CHUNK", 64)
    np.testing.assert_allclose(deploy.runtime.mix_rows(rows, vector), expected, rtol=1e-7, atol=1e-9)


def test_many_swaps_give_each_soup_its_own_logits(bundle: Bundle, reference: TorchReference, batch: Batch) -> None:
    generator = np.random.default_rng(3)
    images = batch(4)
    served: list[tuple[SoupSession, np.ndarray]] = []
    for _ in range(25):
        vector = 1.5 * generator.dirichlet(np.ones(4)) - 0.125
        soup = dict(zip(NAMES, vector.tolist(), strict=True))
        served.append((bundle.session(soup), reference.logits(reference.mix(soup, "folded"), images)))
    for session, expected in served:  # later swaps must not touch the weights of earlier sessions
        assert_same_logits(session.run(images), expected)


def test_sessions_run_while_others_are_built(bundle: Bundle, reference: TorchReference, batch: Batch) -> None:
    images = batch(5)
    live = bundle.session(AFFINE)
    expected = reference.logits(reference.mix(AFFINE, "folded"), images)

    def keep_running(_: int) -> list[np.ndarray]:
        return [live.run(images) for _ in range(60)]

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(keep_running, worker) for worker in range(3)]
        built = [pool.submit(bundle.session, one_hot(NAMES[turn % 4])) for turn in range(12)]
        for future in running:
            for found in future.result():
                assert_same_logits(found, expected)
        for turn, future in enumerate(built):
            ingredient = reference.logits(reference.base.state_dicts[NAMES[turn % 4]], images)
            assert_same_logits(future.result().run(images), ingredient)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_any_batch_size_gives_the_logits_of_single_images(bundle: Bundle, batch: Batch, size: int) -> None:
    session, images = bundle.session(CONVEX), batch(size)
    logits = session.run(images)
    assert logits.shape == (size, 3)
    for position in (0, size // 2, size - 1):
        np.testing.assert_allclose(session.run(images[position : position + 1])[0], logits[position], atol=1e-5)


def test_run_accepts_images_that_are_not_contiguous(bundle: Bundle, batch: Batch) -> None:
    session, images = bundle.session(CONVEX), batch(6)
    assert np.array_equal(session.run(images[::2]), session.run(images[::2].copy()))


@pytest.mark.parametrize("shape", [(3, 16, 16), (0, 3, 16, 16), (1, 1, 16, 16), (2, 3, 32, 32), (1, 16, 16, 3)])
def test_images_of_another_shape_are_refused(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 images \(B >= 1, 3, 16, 16\)"):
        bundle.session(CONVEX).run(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1": 0.5}, "sum to 1"),
        ({"l1": float("nan")}, "finite"),
        ({"l1": float("inf")}, "finite"),
        ({"l7": 0.0}, "one coefficient for each"),
    ],
)
def test_wrong_coefficients_are_refused(bundle: Bundle, change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bundle.session(CONVEX | change)


def test_missing_coefficient_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="one coefficient for each"):
        bundle.session({"linf": 1.0})


def test_negative_variance_is_refused_in_raw_mode_only(bundle: Bundle) -> None:
    far = dict(zip(NAMES, (30.0, -29.0, 0.0, 0.0), strict=True))
    with pytest.raises(UnusableSoup, match=r"variance .*running_var came out at -"):
        bundle.session(far, bn_mode="raw")
    assert bundle.session(far, bn_mode="folded").coefficients == far


PATCHED: list[tuple[str, BnMode, dict[str, float]]] = [
    ("head", "folded", AFFINE),
    ("head", "raw", CONVEX),
    ("statistics", "raw", AFFINE),
    ("both", "raw", AFFINE),
    ("early", "raw", AFFINE),
    ("site", "raw", AFFINE),
    ("both", "raw", one_hot("linf")),  # one-hot: torch's stored logits are those without the patch
]


@pytest.mark.parametrize(("kind", "bn_mode", "coefficients"), PATCHED)
def test_patched_soup_agrees_with_torch(
    bundle: Bundle,
    reference: TorchReference,
    batch: Batch,
    patches: dict[str, Patch],
    kind: str,
    bn_mode: BnMode,
    coefficients: dict[str, float],
) -> None:
    session = bundle.session(coefficients, bn_mode=bn_mode, patch=patches[kind].tensors())
    for size in (1, 7):
        expected = reference.logits(reference.mix(coefficients, bn_mode, patches[kind]), batch(size))
        assert_same_logits(session.run(batch(size)), expected)
    if coefficients == CONVEX:
        assert np.abs(bundle.session(CONVEX, bn_mode="raw").run(batch(7)) - session.run(batch(7))).max() > 1e-2


@pytest.mark.parametrize(("kind", "bn_mode", "coefficients"), PATCHED)
def test_patched_soup_is_the_one_that_a_search_evaluates(
    bundle: Bundle,
    reference: TorchReference,
    batch: Batch,
    patches: dict[str, Patch],
    kind: str,
    bn_mode: BnMode,
    coefficients: dict[str, float],
) -> None:
    prepared = PreparedBase(reference.base)
    model = prepared.model(bn_mode)
    model.set([coefficients[name] for name in NAMES], patches[kind].tensors())
    with torch.inference_mode():
        expected = model.net(prepared.normalise(torch.from_numpy(batch(7)))).numpy()
    session = bundle.session(coefficients, bn_mode=bn_mode, patch=patches[kind].tensors())
    assert_same_logits(session.run(batch(7)), expected)


def test_statistics_of_a_patch_make_raw_batchnorm_usable_outside_the_simplex(
    bundle: Bundle, patches: dict[str, Patch]
) -> None:
    far = dict(zip(NAMES, (30.0, -29.0, 0.0, 0.0), strict=True))
    with pytest.raises(UnusableSoup, match="statistics in the patch, or the folded mode"):
        bundle.mix(far, bn_mode="raw", patch=patches["head"].tensors())
    tensors = patches["statistics"].tensors()
    mixed = bundle.mix(far, bn_mode="raw", patch=tensors)
    for slot in bundle.info.tensors:
        if slot.name in tensors:
            assert np.array_equal(mixed[slot.floats], tensors[slot.name])
    key = next(slot.name for slot in bundle.info.tensors if slot.is_variance)
    with pytest.raises(UnusableSoup, match=rf"variance {key} came out at -1"):
        bundle.mix(far, bn_mode="raw", patch=tensors | {key: -np.ones_like(tensors[key])})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("neck.weight", (3,), r"'neck.weight' of shape \(3,\) does not fit the network, which has no such tensor"),
        ("head.bias", (4,), r"'head.bias' of shape \(4,\) does not fit the network, which has one of shape \(3,\)"),
    ],
)
def test_patch_that_does_not_fit_is_refused(bundle: Bundle, key: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnusableSoup, match=message):
        bundle.session(CONVEX, patch={key: np.zeros(shape, dtype=np.float32)})


def test_session_of_a_patch_is_checked_too(
    bundle: Bundle, patches: dict[str, Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = deploy.runtime.build_inference

    def mistaken(skeleton: bytes, weights: np.ndarray, **options: object) -> ort.InferenceSession:
        wrong = weights * np.float32(1.05) if options.get("optimise", True) else weights
        return real(skeleton, wrong, **options)

    monkeypatch.setattr(deploy.runtime, "build_inference", mistaken)
    with pytest.raises(BundleError, match="probe logits are off"):
        bundle.session(one_hot("linf"), patch=patches["head"].tensors())


@pytest.fixture
def plain_builds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each session that is built without optimisations."""
    real, built = deploy.runtime.build_inference, []

    def build(skeleton: bytes, weights: np.ndarray, **options: object) -> ort.InferenceSession:
        if not options.get("optimise", True):
            built.append(True)
        return real(skeleton, weights, **options)

    monkeypatch.setattr(deploy.runtime, "build_inference", build)
    return built


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    folder = tmp_path / bundle.folder.name
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns(FOLDER))
    return Bundle.open(folder)


def test_what_a_soup_is_checked_against_is_computed_once_for_all_processes(
    own_bundle: Bundle, patches: dict[str, Patch], plain_builds: list[bool]
) -> None:
    patch = patches["head"].tensors()
    own_bundle.session(AFFINE)
    assert len(plain_builds) == 1
    Bundle.open(own_bundle.folder).session(AFFINE)
    assert len(plain_builds) == 1
    own_bundle.session(AFFINE, patch=patch)
    own_bundle.session(AFFINE, bn_mode="raw")
    assert len(plain_builds) == 3
    own_bundle.session(one_hot("l2"))  # torch said what that answers
    expected = own_bundle.expected_logits(AFFINE, patch=patch)
    assert len(plain_builds) == 3
    assert expected.shape == (1, 3)
    kept = sorted((own_bundle.folder / FOLDER).iterdir())
    assert len(kept) == 3
    for file in kept:
        np.save(file, np.load(file) + np.float32(0.1))
    with pytest.raises(BundleError, match=r"probe logits are off by 0\.1"):
        own_bundle.session(AFFINE)


@pytest.mark.parametrize("content", [b"", b"no array", "shape", "dtype", "nan"])
def test_kept_logits_that_cannot_be_right_are_computed_again(
    own_bundle: Bundle, plain_builds: list[bool], content: bytes | str
) -> None:
    expected = own_bundle.expected_logits(AFFINE)
    (file,) = (own_bundle.folder / FOLDER).iterdir()
    spoiled = {"shape": expected[:, :2], "dtype": expected.astype(np.float64), "nan": expected * np.float32(np.nan)}
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, spoiled[content])
    own_bundle.session(AFFINE)
    assert len(plain_builds) == 2
    np.testing.assert_array_equal(np.load(file), expected)


def test_few_logits_are_kept_and_none_where_nothing_can_be_written(
    own_bundle: Bundle, plain_builds: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.expected, "MOST_FILES", 2)
    for number in range(4):
        own_bundle.expected_logits(dict(zip(NAMES, (number / 10, 1 - number / 10, 0.0, 0.0), strict=True)))
    assert len(list((own_bundle.folder / FOLDER).iterdir())) == 2
    shutil.rmtree(own_bundle.folder / FOLDER)
    (own_bundle.folder / FOLDER).write_text("in the way")
    for _ in range(2):
        own_bundle.session(AFFINE)
    assert len(plain_builds) == 6


@pytest.mark.parametrize("large", [2.0**40, 2.0**53])
def test_soup_without_finite_logits_is_refused(bundle: Bundle, large: float) -> None:
    with pytest.raises(UnusableSoup, match="finite"):
        bundle.session(dict(zip(NAMES, (large, 1 - large, 0.0, 0.0), strict=True)))


def test_overflowing_weights_are_refused() -> None:
    with pytest.raises(UnusableSoup, match="overflow"):
        deploy.runtime.mix_rows(np.ones((2, 3), dtype=np.float32), [1e39, 1.0])


def test_session_that_disagrees_with_the_stored_logits_is_refused(bundle: Bundle) -> None:
    wrong = dataclasses.replace(bundle, probe_logits=bundle.probe_logits + np.float32(0.01))
    with pytest.raises(BundleError, match=r"probe logits are off by 0\.01"):
        wrong.session(one_hot("l2"))
    assert wrong.session(one_hot("l2"), verify=False).run(bundle.probe_images).shape == (2, 3)


def test_weights_that_an_optimiser_pass_mistakes_are_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = deploy.runtime.build_inference

    def mistaken(skeleton: bytes, weights: np.ndarray, **options: object) -> ort.InferenceSession:
        wrong = weights * np.float32(1.05) if options.get("optimise", True) else weights
        return real(skeleton, wrong, **options)

    monkeypatch.setattr(deploy.runtime, "build_inference", mistaken)
    with pytest.raises(BundleError, match="probe logits are off"):
        bundle.session(AFFINE)


def test_reference_logits_are_those_of_torch(bundle: Bundle, reference: TorchReference) -> None:
    for mode in MODES:
        for name in NAMES:
            stored = bundle.reference_logits(one_hot(name), bn_mode=mode)
            assert stored is not None
            expected = reference.logits(reference.base.state_dicts[name], bundle.probe_images)
            np.testing.assert_allclose(stored, expected, atol=1e-5)
    assert bundle.reference_logits(AFFINE, bn_mode="folded") is None


def test_rows_are_mapped_read_only(bundle: Bundle) -> None:
    assert isinstance(bundle.rows["folded"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        bundle.rows["folded"][0, 0] = 1


@pytest.mark.skipif(_cuda_device_exists(), reason="needs a machine without CUDA")
def test_explicit_cuda_never_falls_back(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=CUDA):
        bundle.session(CONVEX, device="cuda")
    assert bundle.session(CONVEX, device="auto").provider == CPU


@pytest.mark.gpu
@pytest.mark.skipif(not _cuda_device_exists(), reason="needs CUDA")
def test_cuda_session_agrees_with_torch(bundle: Bundle, reference: TorchReference, batch: Batch) -> None:
    session = bundle.session(AFFINE, device="cuda")
    assert session.provider == CUDA
    assert_same_logits(session.run(batch(7)), reference.logits(reference.mix(AFFINE, "folded"), batch(7)))


def test_several_threads_per_run_give_the_same_logits(bundle: Bundle, batch: Batch) -> None:
    one, two = (bundle.session(AFFINE, intra_op_threads=threads).run(batch(9)) for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)
    with pytest.raises(ValueError, match="at least 1 thread"):
        bundle.session(AFFINE, intra_op_threads=0)


FILES = ("skeleton.onnx", "rows_folded.bin", "rows_raw.bin", "probe_images.bin", "probe_logits.bin")


@pytest.fixture
def copied(tiny_bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle_folder, tmp_path / "bundle"))


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_is_refused(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: expected sha256 \w+, got \w+: .*corrupt") as caught:
        Bundle.open(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*FILES, BUNDLE_NAME])
def test_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: expected .*found no such file"):
        Bundle.open(copied)


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_rows_are_refused_even_unverified(copied: Path, verify: bool) -> None:
    path = copied / "rows_folded.bin"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(BundleError, match=r"rows_folded.bin: expected \d+ bytes, got \d+"):
        Bundle.open(copied, verify=verify)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "in JSON"),
        ("[]", "expected format_version 1, got None"),
        ('{"format_version": 2}', "expected format_version 1, got 2"),
        ('{"format_version": 1}', "Field required"),
    ],
)
def test_malformed_description_is_refused(copied: Path, text: str, message: str) -> None:
    (copied / BUNDLE_NAME).write_text(text)
    with pytest.raises(BundleError, match=rf"{BUNDLE_NAME}: .*{message}"):
        Bundle.open(copied)


def test_edited_description_is_refused(copied: Path) -> None:
    content = json.loads((copied / BUNDLE_NAME).read_text())
    content["class_names"][0] = "lion"
    (copied / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"bundle.json: edited after it was written"):
        Bundle.open(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"folded": "rows_folded.bin"}}, "rows: expected the modes"),
        ({"rows": {"folded": "../rows.bin", "raw": "rows_raw.bin"}}, "rows.folded"),
        ({"row_floats": 8}, "tensors: they end at byte"),
        ({"default_coefficients": {"linf": 1.0}}, "one coefficient for each"),
    ],
)
def test_inconsistent_description_is_refused(copied: Path, change: dict[str, object], message: str) -> None:
    content = json.loads((copied / BUNDLE_NAME).read_text()) | change
    (copied / BUNDLE_NAME).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        Bundle.open(copied)


def test_bundle_of_another_base_set_is_refused(tiny_bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle.json: expected the bundle of base set 000000000000"):
        Bundle.open(tiny_bundle_folder, base_digest="0" * 64)


def test_bundles_are_looked_for_at_home_first(tiny_base_set: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_base_set)
    home, base = tmp_path / "home", tmp_path / "base"
    at_home, beside = home / "bundles" / manifest.digest, base / "bundle" / manifest.digest
    assert find_bundle(base, manifest, home) is None
    for folder in (beside, at_home):
        folder.mkdir(parents=True)
    assert find_bundle(base, manifest, home) is None  # a folder without bundle.json is none
    (beside / BUNDLE_NAME).touch()
    assert find_bundle(base, manifest, home) == beside
    (at_home / BUNDLE_NAME).touch()
    assert find_bundle(base, manifest, home) == at_home
    assert find_bundle(base, manifest, None) == beside


MEMORY_OF_SESSIONS = """
import sys
from pathlib import Path
import numpy as np
from deploy.runtime import Bundle

def anonymous():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous"))

bundle = Bundle.open(Path(sys.argv[1]), verify=False)
names = bundle.info.ingredient_names
batch = np.zeros((32, *bundle.probe_images.shape[1:]), np.float32)

def session(share):
    made = bundle.session(dict(zip(names, (share, 1 - share, *(0,) * (len(names) - 2)))))
    made.run(batch)
    return made

held = [session(0.5)]  # the libraries, and what sessions share
before = anonymous()
held += [session(number / 20) for number in range(20)]
print((anonymous() - before) / 20 / bundle.session_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["cifar10-small", "cifar10-small-ln"])
def test_session_keeps_about_as_much_memory_as_it_says(name: str, shipped_bundle: Callable[[str], Path]) -> None:
    """Its own weights and graph once; not what building took, nor room for the largest batch that it ran."""
    command = [sys.executable, "-c", MEMORY_OF_SESSIONS, str(shipped_bundle(name))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.7 <= float(done.stdout) <= 1.2
