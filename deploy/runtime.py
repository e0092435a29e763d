"""A serving bundle and coefficients in, a running classifier out: numpy and ONNX Runtime only, no torch.

A swap is: mix the memory-mapped rows into one flat buffer, lay the soup's patch over it, hand it to a new session as
the skeleton's external weights, check the session against a reference, use it.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapt.documents.patch import PatchError, Tensors, check_patch
from adapt.documents.soup import BnMode
from deploy.expected import keep_expected, key_of, read_expected
from deploy.layout import (
    BUNDLE_NAME,
    MODES,
    PROBE_IMAGES_NAME,
    PROBE_LOGITS_NAME,
    SKELETON_NAME,
    BundleError,
    BundleInfo,
    find_bundle,
    read_info,
)
from deploy.session import Device, Floats, SoupSession, build_inference, release_memory, session_bytes
from training.documents import one_line
from training.manifest import check_coefficients

__all__ = ["Bundle", "BundleError", "BundleInfo", "Device", "SoupSession", "UnusableSoup", "find_bundle"]

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = 1e-3  # on logits, times the largest logit where that exceeds 1
MIX_CHUNK = 1 << 16  # floats mixed at a time: the float64 accumulator stays in the cache


class UnusableSoup(ValueError):
    """A soup whose network cannot serve: a negative variance, logits that are not finite, a patch that does not fit."""


@dataclass(frozen=True)
class Bundle:
    """An open serving bundle. Rows are memory-mapped read-only, so all workers of a machine share one copy.

    Safe to use from several threads; sessions may be built while others run.
    """

    folder: Path
    info: BundleInfo
    skeleton: bytes
    rows: Mapping[BnMode, Floats]  # (M, row_floats) per BatchNorm mode
    probe_images: Floats  # (n, 3, H, W) in [0, 1]
    probe_logits: Floats  # (modes, M + 1, n, K): what torch said for each of info.reference_soups

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, base_digest: str | None = None) -> "Bundle":
        """Open a bundle.

        Args:
            folder: as `find_bundle` or `deploy.bundle.build_bundle` returned it.
            verify: compare the SHA-256 of every file (reads them all once); sizes are compared in any case.
            base_digest: digest of the base set the bundle must belong to; None accepts any.

        Raises:
            BundleError: missing, corrupt, edited, of another format or base set; one line that names the file.
        """
        info = read_info(folder, verify=verify)
        if base_digest is not None and info.base_digest != base_digest:
            raise BundleError(
                f"{folder / BUNDLE_NAME}: expected the bundle of base set {base_digest[:12]}, "
                f"got {info.base_digest[:12]} ({info.base_set})"
            )
        num_soups, num_probes = len(info.reference_soups), info.num_probe_images
        try:
            shape = (len(info.ingredient_names), info.row_floats)
            maps = {name: _map_rows(folder / name, shape) for name in info.distinct_rows}
            pixels = np.fromfile(folder / PROBE_IMAGES_NAME, dtype=np.uint8)
            logits = np.fromfile(folder / PROBE_LOGITS_NAME, dtype="<f4").astype(np.float32, copy=False)
            skeleton = (folder / SKELETON_NAME).read_bytes()
        except OSError as error:
            raise BundleError(f"{folder}: cannot be read, {one_line(error)}") from None
        images = pixels.reshape(num_probes, 3, info.input.height, info.input.width)
        return cls(
            folder=folder,
            info=info,
            skeleton=skeleton,
            rows={mode: maps[info.rows[mode]] for mode in MODES},
            probe_images=images.astype(np.float32) / np.float32(255),
            probe_logits=logits.reshape(len(MODES), num_soups, num_probes, len(info.class_names)),
        )

    @property
    def session_bytes(self) -> int:
        """About how much memory each of its sessions keeps, besides what all sessions share."""
        return session_bytes(self.skeleton, self.info.row_floats)

    def mix(
        self, coefficients: Mapping[str, float], *, bn_mode: BnMode = "folded", patch: Tensors | None = None
    ) -> Floats:
        """Return the soup's weights as one flat float32 row (row_floats,).

        Accumulates in float64; an ingredient with coefficient 0 is not read, so a one-hot soup is that ingredient bit
        for bit, except for the tensors that the patch replaces.

        Args:
            coefficients: one finite number per ingredient; they sum to 1.
            bn_mode: "folded" mixes ingredients whose BatchNorm statistics are folded away, "raw" mixes statistics too.
            patch: tensors by state-dict key that take the place of mixed ones.

        Raises:
            ValueError: a coefficient is missing, unknown or not finite, or they do not sum to 1 within 1e-6.
            UnusableSoup: a running variance came out negative (raw, coefficients outside [0, 1]) and the patch does
                not replace it; a weight overflowed; or the patch has a tensor that the network has not.
        """
        mixed = mix_rows(self.rows[bn_mode], self._vector(coefficients))
        if patch is not None:
            self._lay_over(mixed, patch)
        for slot in self.info.tensors:
            if slot.is_variance and (lowest := mixed[slot.floats].min(initial=0.0)) < 0:
                raise UnusableSoup(
                    f"the variance {slot.name} came out at {lowest:.3g} with raw BatchNorm: expected coefficients "
                    "within [0, 1], statistics in the patch, or the folded mode"
                )
        return mixed

    def session(
        self,
        coefficients: Mapping[str, float],
        *,
        bn_mode: BnMode = "folded",
        patch: Tensors | None = None,
        device: Device = "cpu",
        intra_op_threads: int = 1,
        verify: bool = True,
    ) -> SoupSession:
        """Build a session that serves the soup, and check it before anyone uses it.

        A one-hot or the default soup without a patch must agree with the logits torch gave when the bundle was built.
        Any other soup must agree with its `expected_logits`: weights that an optimiser pass mistook are found there.

        Args:
            coefficients: one finite number per ingredient; they sum to 1.
            bn_mode: see `mix`.
            patch: see `mix`.
            device: "cuda" never falls back; "auto" takes CUDA where a device and its libraries are found.
            intra_op_threads: threads per `run`; more workers with one thread each serve more than the reverse.
            verify: run the check.

        Raises:
            ValueError: see `mix`; or an unknown device or thread count.
            UnusableSoup: see `mix`; or the logits of the stored probe images are not finite.
            BundleError: CUDA was asked for and is not to be had, or the session's logits are wrong.
        """
        start = time.perf_counter()
        weights = self.mix(coefficients, bn_mode=bn_mode, patch=patch)
        inference = build_inference(self.skeleton, weights, device=device, threads=intra_op_threads)
        session = SoupSession(inference, dict(coefficients), bn_mode, image_shape=self.probe_images.shape[1:])
        if verify:
            self._verify(session, weights, patch)
        del weights
        release_memory()
        seconds = time.perf_counter() - start
        logger.debug("built a session for %s (%s) on %s in %.3f s", coefficients, bn_mode, session.provider, seconds)
        return session

    def reference_logits(self, coefficients: Mapping[str, float], *, bn_mode: BnMode) -> Floats | None:
        """Return torch's probe logits (n, K) if the soup, without a patch, is in `info.reference_soups`, else None."""
        vector = self._vector(coefficients)
        for position, soup in enumerate(self.info.reference_soups):
            if self._vector(soup) == vector:
                logits: Floats = self.probe_logits[MODES.index(bn_mode), position]
                return logits if np.isfinite(logits).all() else None  # raw BatchNorm could not mix the default soup
        return None

    def _vector(self, coefficients: Mapping[str, float]) -> list[float]:
        names = self.info.ingredient_names
        check_coefficients(dict(coefficients), names)
        return [float(coefficients[name]) for name in names]

    def _lay_over(self, mixed: Floats, patch: Tensors) -> None:
        slots = {slot.name: slot for slot in self.info.tensors}
        try:
            check_patch(patch, {name: slot.shape for name, slot in slots.items()})
        except PatchError as error:
            raise UnusableSoup(str(error)) from None
        for key, array in patch.items():
            mixed[slots[key].floats] = array.reshape(-1)

    def expected_logits(
        self,
        coefficients: Mapping[str, float],
        *,
        bn_mode: BnMode = "folded",
        patch: Tensors | None = None,
        weights: Floats | None = None,
    ) -> Floats:
        """Return the logits (1, K) of the first probe image by the soup with every graph optimisation off.

        They are computed once and kept beside the bundle: for a large network that takes longer than a session.

        Args:
            coefficients: as for `mix`.
            bn_mode: see `mix`.
            patch: see `mix`.
            weights: what `mix` returns for these, if it is at hand.

        Raises:
            ValueError: see `mix`.
            UnusableSoup: see `mix`.
        """
        key = key_of(self._vector(coefficients), bn_mode, patch)
        expected = read_expected(self.folder, key, len(self.info.class_names))
        if expected is None:
            if weights is None:
                weights = self.mix(coefficients, bn_mode=bn_mode, patch=patch)
            plain = build_inference(self.skeleton, weights, device="cpu", threads=1, optimise=False)
            expected = SoupSession(plain, dict(coefficients), bn_mode, self.probe_images.shape[1:]).run(
                self.probe_images[:1]  # a session that is not optimised takes long for each; wrong weights show in any
            )
            if np.isfinite(expected).all():
                keep_expected(self.folder, key, expected)
        return expected

    def _verify(self, session: SoupSession, weights: Floats, patch: Tensors | None) -> None:
        coefficients, bn_mode = session.coefficients, session.bn_mode
        expected = None if patch is not None else self.reference_logits(coefficients, bn_mode=bn_mode)
        found = session.run(self.probe_images if expected is not None else self.probe_images[:1])
        if not np.isfinite(found).all():
            raise UnusableSoup("the soup's logits on the probe images are not finite")
        if expected is None:
            expected = self.expected_logits(coefficients, bn_mode=bn_mode, patch=patch, weights=weights)
        difference = float(np.abs(found - expected).max())
        tolerance = PROBE_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not difference <= tolerance:
            raise BundleError(
                f"{self.folder / SKELETON_NAME}: the session's probe logits are off by {difference:.3g}, expected at "
                f"most {tolerance:.3g} (provider {session.provider}): build the bundle again"
            )


def mix_rows(rows: Floats, vector: Sequence[float]) -> Floats:
    """Return `vector @ rows` as float32 (P,), accumulated in float64; rows with coefficient 0 are not read.

    Args:
        rows: float32 (M, P), may be a memory map.
        vector: M finite numbers.

    Raises:
        UnusableSoup: a weight overflowed.
    """
    mixed = np.zeros(rows.shape[1], dtype=np.float32)
    used = [(row, coefficient) for row, coefficient in zip(rows, vector, strict=True) if coefficient != 0]
    for start in range(0, len(mixed), MIX_CHUNK):
        chunk = mixed[start : start + MIX_CHUNK]
        total = np.zeros(len(chunk), dtype=np.float64)
        for row, coefficient in used:
            total += np.multiply(row[start : start + MIX_CHUNK], coefficient, dtype=np.float64)
        with np.errstate(over="ignore"):
            chunk[:] = total
        if not np.isfinite(chunk).all():
            raise UnusableSoup("the coefficients make weights overflow float32")
    return mixed


def _map_rows(path: Path, shape: tuple[int, int]) -> Floats:
    rows: Floats = np.memmap(path, dtype="<f4", mode="r", shape=shape)
    return rows
