"""The serving bundle of a base set: skeleton, flat rows, probe. Built once, checked against torch, published whole."""

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from adapt.documents.soup import BnMode
from deploy.layout import (
    BUNDLE_NAME,
    MODES,
    PROBE_IMAGES_NAME,
    PROBE_LOGITS_NAME,
    SKELETON_NAME,
    STAGING_NAME,
    BundleError,
    BundleInfo,
    discard_bundle,
    staging_folder,
)
from deploy.parity import Comparison, TorchReference, compare, parity_cases, probe_pixels, require
from deploy.runtime import Bundle
from deploy.skeleton import Skeleton, make_skeleton
from training.bases import load_base_set
from training.documents import file_sha256, one_line, signed
from training.images import to_input
from training.manifest import check_mixable
from training.version import VERSION

logger = logging.getLogger(__name__)

NUM_PROBE_IMAGES = 2  # each session is checked on them; more would slow down the swap of a large network
PUBLISH_ATTEMPTS = 3
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu")


def build_bundle(base_folder: Path, out_root: Path) -> Path:
    """Build the serving bundle of a base set and return its folder, `out_root/<base digest>`.

    A sound bundle that is already there is returned as it is; a corrupt one is replaced. The bundle appears under its
    name only when it is whole and agrees with torch. Processes that share `out_root` build one after the other, so the
    second one finds the bundle of the first; the remains of a killed process are removed.

    Args:
        base_folder: the base set.
        out_root: `$SAUCIER_HOME/bundles`, or `<base folder>/bundle` to keep it with the base set.

    Raises:
        BaseSetError: the base set is corrupt, or has a single ingredient.
        ExportError, FoldError: the network cannot be expressed as a skeleton and rows.
        ParityError: ONNX Runtime and torch disagree.
        BundleError: `out_root` cannot be written (full, read-only); nothing is left there.
    """
    base = load_base_set(base_folder)
    check_mixable(base.manifest)
    final = out_root / base.manifest.digest
    with _alone(out_root):
        if _is_sound(final, base.manifest.digest):
            logger.info("%s is there already", final)
            return final
        with _staging(final) as staging:
            reference = TorchReference(base)
            _write(staging, reference)
            require(check_bundle(Bundle.open(staging, base_digest=base.manifest.digest), reference))
            _publish(staging, final, base.manifest.digest)
    return final


def check_bundle(bundle: Bundle, reference: TorchReference, *, seed: int = 0) -> list[Comparison]:
    """Compare a bundle's sessions with torch: every ingredient, the default and a random soup, in each BatchNorm mode.

    Args:
        bundle: the bundle.
        reference: of its base set.
        seed: of the random soup.
    """
    has_modes = len(bundle.info.distinct_rows) > 1
    comparisons = []
    for case in parity_cases(reference.base, has_modes=has_modes, seed=seed):
        patch = None if case.patch is None else case.patch.tensors()
        session = bundle.session(case.coefficients, bn_mode=case.bn_mode, patch=patch, verify=False)
        comparisons += compare(reference, case, session.run)
    return comparisons


def _is_sound(folder: Path, digest: str) -> bool:
    if not folder.exists():
        return False
    try:
        Bundle.open(folder, base_digest=digest)
    except BundleError as error:
        logger.warning("building the bundle again: %s", error)
        return False
    return True


@contextmanager
def _alone(out_root: Path) -> Iterator[None]:
    """Wait until no other process builds in a folder, made if need be, and remove what killed ones left there.

    Where the file system has no locks, several processes build at once: the slower ones keep the first one's bundle.
    """
    try:
        out_root.mkdir(parents=True, exist_ok=True)
        folder = os.open(out_root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"{out_root}: cannot write a bundle there, {one_line(error)}") from error
    try:
        if _lock(folder, out_root):
            for left in out_root.iterdir():
                if re.fullmatch(STAGING_NAME, left.name):
                    shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, out_root: Path) -> bool:
    """Lock an open folder until it is closed; False if its file system cannot."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("%s: waiting for another process that builds a bundle there", out_root)
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextmanager
def _staging(final: Path) -> Iterator[Path]:
    """Give a folder beside the final one, and remove it in any case."""
    staging = staging_folder(final)
    try:
        staging.mkdir()
        yield staging
    except OSError as error:
        raise BundleError(f"{final.parent}: cannot write a bundle there, {one_line(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(folder: Path, reference: TorchReference) -> None:
    base = reference.base
    manifest = base.manifest
    skeleton = make_skeleton(base.model(), (3, manifest.input.height, manifest.input.width))
    (folder / SKELETON_NAME).write_bytes(skeleton.graph)
    rows = _write_rows(folder, skeleton, reference)
    pixels = probe_pixels(manifest.input)[-NUM_PROBE_IMAGES:]
    (folder / PROBE_IMAGES_NAME).write_bytes(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).tobytes())
    (folder / PROBE_LOGITS_NAME).write_bytes(_probe_logits(reference, to_input(pixels)).astype("<f4").tobytes())
    names = (SKELETON_NAME, PROBE_IMAGES_NAME, PROBE_LOGITS_NAME, *dict.fromkeys(rows.values()))
    info = BundleInfo(
        base_set=manifest.name,
        base_digest=manifest.digest,
        input=manifest.input,
        class_names=manifest.class_names,
        ingredient_names=manifest.ingredient_names,
        default_coefficients=manifest.default_coefficients,
        default_temperature=manifest.default_temperature,
        tensors=skeleton.tensors,
        row_floats=skeleton.row_floats,
        rows=rows,
        num_probe_images=NUM_PROBE_IMAGES,
        files={name: file_sha256(folder / name) for name in names},
        versions={"saucier": VERSION, **{library: version(library) for library in LIBRARIES}},
    )
    (folder / BUNDLE_NAME).write_text(signed(info).model_dump_json(indent=1) + "\n", encoding="utf-8")


def _write_rows(folder: Path, skeleton: Skeleton, reference: TorchReference) -> dict[BnMode, str]:
    """Write one matrix per BatchNorm mode, or a single one if folding changes nothing; return the file of each mode."""
    same = reference.folded is reference.base.state_dicts
    files: dict[BnMode, str] = {mode: "rows.bin" if same else f"rows_{mode}.bin" for mode in MODES}
    for mode in MODES[:1] if same else MODES:
        with (folder / files[mode]).open("wb") as file:
            for state_dict in reference.state_dicts(mode).values():
                file.write(skeleton.flatten(state_dict).astype("<f4", copy=False).data)
    return files


def _probe_logits(reference: TorchReference, images: np.ndarray) -> np.ndarray:
    """Return torch's logits (modes, M + 1, n, K) of each ingredient and the default soup; NaN where raw cannot mix."""
    manifest = reference.base.manifest
    per_mode = []
    for mode in MODES:
        state_dicts = [*reference.state_dicts(mode).values()]
        logits = [reference.logits(state_dict, images) for state_dict in state_dicts]
        try:
            default = reference.logits(reference.mix(manifest.default_coefficients, mode), images)
        except ValueError:  # a negative variance
            default = np.full_like(logits[0], np.nan)
        per_mode.append(np.stack([*logits, default]))
    return np.stack(per_mode)


def _publish(staging: Path, final: Path, digest: str) -> None:
    """Move the bundle to its name; if another process was faster, keep that one; a corrupt one makes way."""
    for _ in range(PUBLISH_ATTEMPTS):
        try:
            staging.replace(final)
        except OSError:
            if not final.exists():
                raise
            if _is_sound(final, digest):
                return
            discard_bundle(final)
        else:
            return
    raise BundleError(f"{final}: expected a sound bundle or none, but other processes keep writing there")
