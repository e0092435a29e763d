"""The base set on disk: a folder with `manifest.json` and one safetensors file per ingredient.

Loading a base set gives float32 weights for every way in which files hold them (training/storage.py).
"""

import hashlib
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from training.documents import file_sha256, signed
from training.files import replace_file
from training.manifest import MANIFEST_NAME, BaseSetError, Ingredient, Manifest, MomentsFile, read_manifest
from training.models import Classifier, create_classifier
from training.moments import LayerMoments, Moments, movable_layers
from training.storage import halve, restore, subtract

StateDict = dict[str, Tensor]


class StateDictMismatch(ValueError):
    """State dicts whose keys, shapes or dtypes differ. The message names the first five."""


@dataclass(frozen=True)
class BaseSet:
    """A verified base set in memory.

    `state_dicts` maps each ingredient's name, in manifest order, to the state dict of its timm network (CPU; float32
    tensors and integer counters; timm's own keys). `moments`, of each ingredient too, is None where they were not
    measured.
    """

    path: Path
    manifest: Manifest
    state_dicts: dict[str, StateDict]
    moments: Mapping[str, LayerMoments] | None = None

    def model(self, ingredient: str | None = None) -> Classifier:
        """Return a fresh classifier in eval mode on the CPU with the weights of an ingredient (default: the first)."""
        name = ingredient or self.manifest.ingredient_names[0]
        if name not in self.state_dicts:
            raise ValueError(
                f"base set {self.manifest.name!r} has no ingredient {name!r}, only {list(self.state_dicts)}"
            )
        manifest = self.manifest
        classifier = create_classifier(manifest.architecture, manifest.input, len(manifest.class_names))
        classifier.net.load_state_dict(self.state_dicts[name])
        return classifier


def load_base_set(folder: Path) -> BaseSet:
    """Load and verify a base set: format, digests, keys, shapes, dtypes, finite values.

    Raises:
        BaseSetError: with one line that names the file and what was expected.
    """
    manifest = read_manifest(folder)
    try:
        net = create_classifier(manifest.architecture, manifest.input, len(manifest.class_names)).net
    except ValueError as error:
        raise BaseSetError(f"{folder / MANIFEST_NAME}: {error}") from None
    expected, state_dicts = net.state_dict(), dict[str, StateDict]()
    for ingredient in _parents_first(manifest):
        path = folder / ingredient.file
        parent = None if ingredient.delta_parent is None else state_dicts[ingredient.delta_parent]
        try:
            state_dict = restore(safetensors.torch.load_file(path), parent)
            check_like(expected, state_dict)
        except (ValueError, safetensors.SafetensorError, OSError) as error:
            raise BaseSetError(f"{path}: expected the weights of {manifest.architecture.name}: {error}") from None
        if bad := [key for key, tensor in state_dict.items() if not torch.isfinite(tensor).all()]:
            raise BaseSetError(f"{path}: expected finite weights, found NaN or infinity in {bad[0]}")
        state_dicts[ingredient.name] = state_dict
    moments = None if manifest.moments is None else _read_moments(folder / manifest.moments.file, net, manifest)
    return BaseSet(folder, manifest, {name: state_dicts[name] for name in manifest.ingredient_names}, moments)


def _parents_first(manifest: Manifest) -> list[Ingredient]:
    """Return the ingredients, those that are stored as a difference last."""
    return sorted(manifest.ingredients, key=lambda ingredient: ingredient.delta_parent is not None)


def _read_moments(path: Path, net: nn.Module, manifest: Manifest) -> dict[str, LayerMoments]:
    """Read the moments of every ingredient: of the same layers, all of them movable."""
    try:
        tensors = safetensors.torch.load_file(path)
        layers = [name for name in movable_layers(net, max_weights=math.inf) if _first(manifest, name) in tensors]
        sizes = {name: net.get_parameter(f"{name}.bias").detach() for name in layers}
        keys = _moment_keys(manifest.ingredient_names, layers)
        check_like({key: sizes[layer] for key, (_, layer, _) in keys.items()}, tensors)
    except (StateDictMismatch, safetensors.SafetensorError, OSError) as error:
        raise BaseSetError(f"{path}: expected moments of {manifest.architecture.name}: {error}") from None
    if bad := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise BaseSetError(f"{path}: expected finite moments, found NaN or infinity in {bad[0]}")
    if bad := [key for key, tensor in tensors.items() if key.endswith(".var") and (tensor < 0).any()]:
        raise BaseSetError(f"{path}: expected variances of at least 0, found a negative one in {bad[0]}")
    return {
        name: {layer: Moments(*(tensors[f"{name}/{layer}.{part}"] for part in Moments._fields)) for layer in layers}
        for name in manifest.ingredient_names
    }


def _first(manifest: Manifest, layer: str) -> str:
    return next(iter(_moment_keys(manifest.ingredient_names, [layer])))


def _moment_keys(names: Iterable[str], layers: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Return ingredient, layer and `mean` or `var` by the key of their tensor."""
    parts = product(names, layers, Moments._fields)
    return {f"{name}/{layer}.{part}": (name, layer, part) for name, layer, part in parts}


def check_like(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise StateDictMismatch, naming the first five differences, unless keys, shapes and dtypes are equal."""
    problems = [f"{key} is missing" for key in expected if key not in found]
    problems += [f"{key} is not expected" for key in found if key not in expected]
    for key in expected.keys() & found.keys():
        ours, theirs = _describe(expected[key]), _describe(found[key])
        if ours != theirs:
            problems.append(f"{key} is {theirs}, expected {ours}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise StateDictMismatch("; ".join(sorted(problems)[:5]) + more)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def save_base_set(
    folder: Path,
    manifest: Manifest,
    state_dicts: Mapping[str, Mapping[str, Tensor]],
    *,
    moments: Mapping[str, LayerMoments] | None = None,
) -> Manifest:
    """Write a base set atomically and return its signed manifest.

    An ingredient whose manifest entry has `storage` is rounded as that says.

    Args:
        folder: where it goes; must not exist or be empty.
        manifest: complete except for the ingredients' SHA-256 (any value) and the digest, which are filled in here.
        state_dicts: one per ingredient, timm's own keys.
        moments: one per ingredient, where the manifest has `moments`.

    Raises:
        FileExistsError: the folder already holds something.
        OSError: the disk is full or read-only; nothing is left behind.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: already exists; choose another --out or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = _write_ingredients(staging, manifest, state_dicts)
        update: dict[str, object] = {"ingredients": tuple(written[name] for name in manifest.ingredient_names)}
        if manifest.moments is not None and moments is not None:
            update["moments"] = _write_moments(staging, manifest.moments, moments)
        done = signed(manifest.model_copy(update=update))
        (staging / MANIFEST_NAME).write_text(done.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return done


def _write_ingredients(
    folder: Path, manifest: Manifest, state_dicts: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Ingredient]:
    """Write every ingredient in the way its `storage` says; return them by name, with their SHA-256."""
    written: dict[str, Ingredient] = {}
    for ingredient in _parents_first(manifest):
        path = folder / ingredient.file
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dicts[ingredient.name].items()}
        if ingredient.delta_parent is not None:
            parent = folder / written[ingredient.delta_parent].file  # as it was rounded
            tensors = subtract(tensors, restore(safetensors.torch.load_file(parent)))
        elif ingredient.storage is not None:
            tensors = halve(tensors)
        safetensors.torch.save_file(tensors, path)
        path.chmod(0o644)
        written[ingredient.name] = ingredient.model_copy(update={"sha256": file_sha256(path)})
    return written


def add_ingredient(
    base: BaseSet,
    manifest: Manifest,
    weights: StateDict,
    moments: tuple[Mapping[str, LayerMoments], MomentsFile] | None,
) -> Manifest:
    """Give an existing base set a further ingredient; returns its manifest, which has a new digest.

    New files have names that the old manifest does not know, so that the base set is whole at every moment.

    Args:
        base: as it was loaded.
        manifest: with the new ingredient as the last one, without its SHA-256 and the moments.
        weights: of the new ingredient, timm's own keys, float32.
        moments: of all ingredients, and the manifest's entry of them; None if the base set has none.

    Raises:
        OSError: the folder cannot be written; the base set is as before.
    """
    added = manifest.ingredients[-1]
    path = base.path / added.file
    content = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
    replace_file(path, lambda partial: partial.write_bytes(content), mode=0o644)
    before = after = base.manifest.moments
    try:
        if moments is not None:
            after = _write_moments(base.path, moments[1], moments[0], is_named_by_content=True)
        ingredients = (*base.manifest.ingredients, added.model_copy(update={"sha256": file_sha256(path)}))
        written = rewrite_manifest(
            base.path, manifest.model_copy(update={"ingredients": ingredients, "moments": after})
        )
    except BaseException:
        _remove_other(base.path, after, kept=before)
        path.unlink(missing_ok=True)
        raise
    _remove_other(base.path, before, kept=after)
    return written


def _remove_other(folder: Path, gone: MomentsFile | None, *, kept: MomentsFile | None) -> None:
    if gone is not None and kept is not None and gone.file != kept.file:
        (folder / gone.file).unlink(missing_ok=True)


def add_moments(base: BaseSet, moments: Mapping[str, LayerMoments], described: MomentsFile) -> Manifest:
    """Give an existing base set moments, or others than it has; returns its manifest, which has a new digest.

    Others get a file of another name: a base set is whole at every moment, whenever the process ends.

    Args:
        base: as it was loaded.
        moments: one per ingredient.
        described: the manifest's entry of them, without the SHA-256.
    """
    before = base.manifest.moments
    written = _write_moments(base.path, described, moments, is_named_by_content=before is not None)
    manifest = rewrite_manifest(base.path, base.manifest.model_copy(update={"moments": written}))
    _remove_other(base.path, before, kept=written)
    return manifest


def _write_moments(
    folder: Path, described: MomentsFile, moments: Mapping[str, LayerMoments], *, is_named_by_content: bool = False
) -> MomentsFile:
    keys = _moment_keys(moments, next(iter(moments.values())))
    tensors = {key: getattr(moments[name][layer], part) for key, (name, layer, part) in keys.items()}
    content = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"moments-{sha256[:8]}.safetensors" if is_named_by_content else described.file
    replace_file(folder / file, lambda partial: partial.write_bytes(content), mode=0o644)
    return described.model_copy(update={"sha256": sha256, "file": file})


def rewrite_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest of an existing base set by another one for the same files; returns it signed.

    The old manifest stays intact until the new one is whole on disk.
    """
    done = signed(Manifest.model_validate(manifest.model_dump()))
    text = done.model_dump_json(indent=2) + "\n"
    replace_file(folder / MANIFEST_NAME, lambda partial: partial.write_text(text, encoding="utf-8"))
    return done


def list_base_sets(root: Path) -> list[Manifest]:
    """Return the manifests of all base sets directly below `root`, by name; digests of the weights are not checked."""
    return [read_manifest(path.parent, check_files=False) for path in sorted(root.glob(f"*/{MANIFEST_NAME}"))]
