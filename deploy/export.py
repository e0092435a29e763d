"""`soup.onnx`: one self-contained classifier for any coefficients, for any ONNX runtime."""

import base64
import json
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir
import onnxruntime as ort
from onnxruntime.transformers.float16 import convert_float_to_float16
from pydantic import ValidationError

from adapt.documents.patch import Patch, PatchSummary
from adapt.documents.soup import Soup, check_soup
from deploy.layout import INPUT_NAME, OUTPUT_NAME, BundleError
from deploy.parity import Case, Comparison, TorchReference, compare, require
from deploy.session import CPU, Floats
from deploy.skeleton import embed, make_skeleton
from training.bases import BaseSet
from training.documents import first_error, one_line
from training.files import replace_file
from training.version import VERSION

Precision = Literal["fp32", "fp16"]

# Share of the largest logit (at least 1) that half precision may move a logit by. Measured: 0.05 to 0.13 % on six
# architectures; a wrong conversion is off by far more.
FP16_TOLERANCE = 1e-2


class ExportedSoup(Soup):
    """The metadata of an exported file."""

    precision: Precision


def export(base: BaseSet, soup: Soup, out: Path, precision: Precision = "fp32") -> list[Comparison]:
    """Write a soup as one ONNX file and check it against torch before it gets its name.

    Input `images` float32 (batch, 3, H, W), RGB in [0, 1] at the input size; output `logits` float32 (batch, K), not
    yet divided by the temperature. Metadata: class_names, input, base_set, base_digest, coefficients, bn_mode,
    temperature, precision, saucier_version; all but plain strings in JSON. With a patch also patch (its SHA-256 and
    what it changes) and patch_tensors (`patch.safetensors` in base64), so that the file says all of its soup.

    Args:
        base: the soup's base set.
        soup: coefficients, BatchNorm mode, temperature and patch.
        out: the file; replaced if it exists.
        precision: "fp16" stores and computes in half precision; input and output stay float32.

    Returns:
        The comparisons with torch, all within tolerance: 1e-4 on the logits (3e-6 of the largest if that is more) for
        fp32, 1 % of the largest logit for fp16.

    Raises:
        SoupError: the soup is of another base set.
        PatchError: the patch has a tensor that the network has not.
        ValueError: raw BatchNorm with coefficients that make a variance negative.
        ExportError: torch cannot export the network, or it exceeds 2 GiB.
        ParityError: the file's logits are not torch's; no file is written.
        OSError: `out` cannot be written; nothing is left behind.
    """
    check_soup(soup, base.manifest)
    reference = TorchReference(base)
    skeleton = make_skeleton(base.model(), (3, base.manifest.input.height, base.manifest.input.width))
    model = embed(skeleton, skeleton.flatten(reference.mix(soup.coefficients, soup.bn_mode, soup.patch)))
    if precision == "fp16":
        model = _halve(model)
    onnx.helper.set_model_props(model, _metadata(base, soup, precision))
    model.producer_name, model.producer_version = "saucier", VERSION
    out.parent.mkdir(parents=True, exist_ok=True)
    comparisons: list[Comparison] = []

    def write(path: Path) -> None:
        path.write_bytes(model.SerializeToString())
        comparisons.extend(_compare(path, soup, precision, reference))
        require(comparisons)

    replace_file(out, write)
    return comparisons


def check_export(path: Path, base: BaseSet) -> list[Comparison]:
    """Compare an exported file with torch, on the soup its metadata names.

    Raises:
        BundleError: not an ONNX file, or not one of Saucier's.
        SoupError: of another base set.
    """
    soup = read_exported_soup(path)
    check_soup(soup, base.manifest)
    return _compare(path, soup, soup.precision, TorchReference(base))


def read_exported_soup(path: Path) -> ExportedSoup:
    """Return the soup that an exported file says it is.

    Raises:
        BundleError: not an ONNX file, or not one of Saucier's.
    """
    metadata = _open(path).get_modelmeta().custom_metadata_map
    try:
        return ExportedSoup(
            base_set=metadata["base_set"],
            base_digest=metadata["base_digest"],
            coefficients=json.loads(metadata["coefficients"]),
            bn_mode=metadata["bn_mode"],
            temperature=json.loads(metadata["temperature"]),
            precision=metadata["precision"],
            patch=_read_patch(metadata),
        )
    except KeyError as error:
        raise BundleError(f"{path}: expected a file of `deploy export`, found no {error} in its metadata") from None
    except ValidationError as error:
        raise BundleError(f"{path}: malformed metadata, {first_error(error)}") from None
    except ValueError as error:
        raise BundleError(f"{path}: malformed metadata, {one_line(error)}") from None


def _read_patch(metadata: dict[str, str]) -> Patch | None:
    if "patch" not in metadata:
        return None
    summary = PatchSummary.model_validate_json(metadata["patch"])
    return Patch(**dict(summary), data=base64.b64decode(metadata["patch_tensors"], validate=True))


def _metadata(base: BaseSet, soup: Soup, precision: Precision) -> dict[str, str]:
    manifest = base.manifest
    metadata = {
        "class_names": json.dumps(manifest.class_names),
        "input": manifest.input.model_dump_json(),
        "base_set": manifest.name,
        "base_digest": manifest.digest,
        "coefficients": json.dumps(soup.coefficients),
        "bn_mode": soup.bn_mode,
        "temperature": json.dumps(soup.temperature),
        "precision": precision,
        "saucier_version": VERSION,
    }
    if soup.patch is not None:
        metadata["patch"] = soup.patch.summary.model_dump_json()
        metadata["patch_tensors"] = base64.b64encode(soup.patch.data).decode("ascii")
    return metadata


def _halve(model: onnx.ModelProto) -> onnx.ModelProto:
    halved = onnx_ir.from_proto(convert_float_to_float16(model, keep_io_types=True))
    halved.graph.sort()  # the converter appends its casts at the end, which ONNX does not allow
    proto: onnx.ModelProto = onnx_ir.to_proto(halved)
    return proto


def _compare(path: Path, soup: Soup, precision: Precision, reference: TorchReference) -> list[Comparison]:
    session = _open(path)

    def run(images: Floats) -> Floats:
        logits: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return logits

    case = Case(name="soup", coefficients=soup.coefficients, bn_mode=soup.bn_mode, patch=soup.patch)
    return compare(reference, case, run, relative=FP16_TOLERANCE if precision == "fp16" else None)


def _open(path: Path) -> ort.InferenceSession:
    """Open the file as anyone would, every optimisation on."""
    if not path.is_file():
        raise BundleError(f"{path}: expected an ONNX file, found no such file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=[CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(f"{path}: expected an ONNX file, {one_line(error)}") from error
