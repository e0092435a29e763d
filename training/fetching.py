"""The command that brings CIFAR-10 into the layout that every command reads: one folder per class, one file per image.

It takes torchvision's download, from a folder or the network, and checks it by torchvision's own digests.
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from training.cli import Command, Result
from training.data import ImageSet
from training.named_sets import CIFAR10_ARCHIVE, CIFAR10_FOLDER, Unavailable, is_cifar10_archive, read_cifar10
from training.parameters import Arg, Positional

logger = logging.getLogger(__name__)


class Fetch(Command):
    """Download a data set by name, or convert a download, into folders of images: train/CLASS/FILE, test/CLASS/FILE.

    Example: saucier data cifar10 --out .data/cifar10

    Without a network: saucier data cifar10 --out .data/cifar10 --from DOWNLOADS
    """

    name: ClassVar[str] = "data"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    source: Annotated[Literal["cifar10"], Positional] = Field(description="which data set")
    out: Path = Field(description="folder that is made; it must be new")
    download: Annotated[Path | None, Arg(name="from")] = Field(
        default=None,
        description="folder with torchvision's download (cifar-10-python.tar.gz, or cifar-10-batches-py/ unpacked); by "
        "default it is downloaded, and deleted at the end",
    )

    def execute(self) -> Result:
        """Fetch, convert."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileExistsError(f"{self.out}: expected a folder that is new or empty; choose another --out")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{self.out.name}.", suffix=".partial", dir=self.out.parent) as name:
            partial = Path(name)
            parts = self._read(partial / "download")
            for part, images in parts.items():
                logger.info("writing %d images of %s/", len(images), part)
                write_folder(images, partial / "images" / part)
            if self.out.is_dir():
                self.out.rmdir()
            shutil.move(partial / "images", self.out)
        counts = {part: len(images) for part, images in parts.items()}
        text = f"wrote {self.out}: {', '.join(f'{count} images of {part}' for part, count in counts.items())}"
        return Result({"out": str(self.out), "images": counts, "classes": list(images.class_names)}, text)

    def _read(self, scratch: Path) -> dict[str, ImageSet]:
        """Read the download, or download into an empty folder and read that."""
        scratch.mkdir()
        if self.download is None:
            try:
                return read_cifar10(scratch, may_download=True)
            except Unavailable as error:
                advice = f"download {CIFAR10_ARCHIVE} elsewhere and give its folder by --from"
                raise ValueError(f"CIFAR-10 cannot be downloaded: {error}; {advice}") from None
        is_unpacked = (self.download / CIFAR10_FOLDER).is_dir()
        archive = self.download / CIFAR10_ARCHIVE
        if not is_unpacked and not archive.is_file():
            raise ValueError(f"{self.download}: expected {CIFAR10_FOLDER}/ or {CIFAR10_ARCHIVE}, found neither")
        if not is_unpacked and not is_cifar10_archive(archive):
            raise ValueError(f"{archive}: expected an undamaged download of CIFAR-10, got another MD5 sum")
        if not is_unpacked:
            shutil.copy(archive, scratch / CIFAR10_ARCHIVE)  # the given folder stays as it is
        try:
            return read_cifar10(self.download if is_unpacked else scratch, may_download=not is_unpacked)
        except Unavailable as error:
            what = CIFAR10_FOLDER if is_unpacked else CIFAR10_ARCHIVE
            raise ValueError(f"{self.download / what}: expected an undamaged download of CIFAR-10: {error}") from None


def write_folder(images: ImageSet, folder: Path) -> None:
    """Write images as `<class>/<number>.png`, which keeps every pixel; numbers count within the class, in order."""
    for label, name in enumerate(images.class_names):
        (folder / name).mkdir(parents=True)
        for number, position in enumerate(np.flatnonzero(images.labels == label)):
            Image.fromarray(images.images[position]).save(folder / name / f"{number:05}.png")
