"""The commands `bundle`, `export` and `check`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from adapt.documents.soup import BnMode, Soup, default_soup, make_soup, read_soup
from deploy.bundle import build_bundle, check_bundle
from deploy.export import Precision, check_export, export
from deploy.layout import read_info
from deploy.parity import Comparison, TorchReference
from deploy.runtime import Bundle
from training.bases import BaseSet, load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result
from training.nearest import meant
from training.parameters import Positional


class BundleCommand(Command):
    """Build the serving bundle of a base set beside it, to go with it into a Bento or onto other machines.

    A service without one builds its own at its first start.

    Example: saucier bundle bases/cifar10-small
    """

    name: ClassVar[str] = "bundle"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    bases: Annotated[Path, Positional] = Field(description="folder of the base set")
    out: Path | None = Field(default=None, description="folder for <digest>/ (default: BASES/bundle)")

    def execute(self) -> Result:
        """Build it."""
        folder = build_bundle(self.bases, self.out or self.bases / "bundle")
        info = read_info(folder, verify=False)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
        data = {"bundle": str(folder), "base_set": info.base_set, "base_digest": info.base_digest, "bytes": sizes}
        return Result(data, f"{folder}: {sum(sizes.values()):,} bytes, agrees with torch")


class ExportCommand(Command):
    """Write a soup as one self-contained ONNX file (default: the base set's default soup).

    Example: saucier export bases/cifar10-small --coefficients linf=0.5,nominal=0.5 --out soup.onnx
    """

    name: ClassVar[str] = "export"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    bases: Annotated[Path, Positional] = Field(description="folder of the base set")
    out: Path = Field(description="the file to write")
    soup: Path | None = Field(default=None, description="soup.json, as `adapt search` writes it; its patch beside it")
    coefficients: str | None = Field(default=None, description="name=number,...; ingredients left out get 0")
    bn_mode: BnMode = Field(default="folded", description="BatchNorm mode for --coefficients")
    temperature: float = Field(default=1.0, gt=0, description="divides the logits, for --coefficients; metadata only")
    precision: Precision = Field(default="fp32", description="fp16 halves the file; logits within 1 percent")

    def execute(self) -> Result:
        """Export it."""
        base = load_base_set(self.bases)
        soup = self._soup(base)
        comparisons = export(base, soup, self.out, self.precision)
        data = {
            "out": str(self.out),
            "bytes": self.out.stat().st_size,
            "coefficients": soup.coefficients,
            "bn_mode": soup.bn_mode,
            "temperature": soup.temperature,
            "patch": None if soup.patch is None else soup.patch.summary.model_dump(),
            "precision": self.precision,
            **_report(comparisons),
        }
        return Result(data, f"{self.out}: {data['bytes']:,} bytes\n{_table(comparisons)}")

    def _soup(self, base: BaseSet) -> Soup:
        if self.soup is not None and self.coefficients is not None:
            raise ValueError("expected --soup or --coefficients, got both")
        if self.soup is not None:
            return read_soup(self.soup)
        if self.coefficients is None:
            return default_soup(base.manifest)
        given = parse_coefficients(self.coefficients)
        if unknown := sorted(given.keys() - base.state_dicts.keys()):
            hint = meant(unknown[0], base.state_dicts)
            raise ValueError(f"--coefficients: expected names among {list(base.state_dicts)}, got {unknown}{hint}")
        filled = dict.fromkeys(base.manifest.ingredient_names, 0.0) | given
        return make_soup(base.manifest, filled, bn_mode=self.bn_mode, temperature=self.temperature)


class CheckCommand(Command):
    """Compare a bundle or an exported ONNX file with torch; exit code 1 if they disagree.

    Example: saucier check soup.onnx bases/cifar10-small
    """

    name: ClassVar[str] = "check"

    target: Annotated[Path, Positional] = Field(description="an ONNX file, or the folder of a bundle")
    bases: Annotated[Path, Positional] = Field(description="folder of the base set")

    def execute(self) -> Result:
        """Compare them."""
        base = load_base_set(self.bases)
        if self.target.is_dir():
            bundle = Bundle.open(self.target, base_digest=base.manifest.digest)
            comparisons = check_bundle(bundle, TorchReference(base), seed=self.seed)
        else:
            comparisons = check_export(self.target, base)
        data = {"target": str(self.target), **_report(comparisons)}
        return Result(data, _table(comparisons), EXIT_DONE if data["holds"] else EXIT_CLAIM_FAILED)


def parse_coefficients(text: str) -> dict[str, float]:
    """Read "a=0.5,b=0.5"; ValueError says what does not parse."""
    coefficients: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = None
        if not name or not equals or value is None or name in coefficients:
            raise ValueError(f"--coefficients: expected name=number,... with each name once, got {part.strip()!r}")
        coefficients[name] = value
    return coefficients


def _report(comparisons: list[Comparison]) -> dict[str, object]:
    return {
        "holds": all(comparison.holds for comparison in comparisons),
        "max_difference": max(comparison.difference for comparison in comparisons),
        "comparisons": [comparison.model_dump() for comparison in comparisons],
    }


def _table(comparisons: list[Comparison]) -> str:
    lines = [f"{'soup':<16} {'BatchNorm':<9} {'batch':>5} {'difference':>10} {'allowed':>9}"]
    for row in comparisons:
        verdict = "" if row.holds else "  DIFFERS"
        lines.append(
            f"{row.name:<16} {row.bn_mode:<9} {row.batch:>5} {row.difference:>10.2e} {row.tolerance:>9.1e}{verdict}"
        )
    return "\n".join(lines)
