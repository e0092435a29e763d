"""`saucier adapt evaluate`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from adapt.commands.common import BasesArgument, FolderArgument, alone, load_images, measure
from adapt.documents.soup import check_soup, default_soup, make_soup, read_soup
from adapt.networks.prepared import PreparedBase
from training.bases import load_base_set
from training.cli import Command, Result
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import pick_device, thread_count


class EvaluateCommand(Command):
    """Measure soups on labelled images: every ingredient, the uniform and the default soup, and those given.

    Example: saucier adapt evaluate bases/cifar10-small unseen/ --soups runs/shifted/soup.json
    """

    name: ClassVar[str] = "evaluate"
    bases: BasesArgument = Field(description="base set, bases/<name>")
    folder: FolderArgument = Field(description="labelled images, one folder per class")
    soups: tuple[Path, ...] = Field(default=(), description="soup.json files")
    n: int | None = Field(default=None, ge=1, description="use only N images, drawn evenly over the classes")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")

    def execute(self) -> Result:
        """Evaluate and tabulate."""
        base = load_base_set(self.bases)
        manifest = base.manifest
        images = load_images(self.folder, manifest)
        if self.n is not None:
            images = images.balanced(self.n, seed=self.seed)
        count = len(manifest.ingredients)
        soups = {name: alone(manifest, name) for name in manifest.ingredient_names}
        soups["uniform"] = make_soup(manifest, dict.fromkeys(manifest.ingredient_names, 1 / count))
        soups["default"] = default_soup(manifest)
        for path in self.soups:
            soups[str(path)] = read_soup(path)
            check_soup(soups[str(path)], manifest)
        with thread_count(self.threads):
            found = measure(PreparedBase(base, device=pick_device(self.device)), soups, images)
        data = {
            "n": len(images),
            "accuracy": {name: accuracy for name, (accuracy, _) in found.items()},
            "log_loss": {name: loss for name, (_, loss) in found.items()},
        }
        width = max(map(len, found))
        lines = [f"{f'{len(images)} images':<{width}}   accuracy   log-loss at the soup's temperature"]
        lines += [f"{name:<{width}}   {accuracy:8.4f}   {loss:8.4f}" for name, (accuracy, loss) in found.items()]
        return Result(data, "\n".join(lines))
