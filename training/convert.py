"""The `convert` command: weights under other names become a safetensors file with timm's own."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import safetensors.torch
import timm
from pydantic import Field

from training.cli import Command, Result
from training.documents import file_sha256
from training.foreign import COUNTERS, Match, load_weights
from training.manifest import Architecture, InputSpec
from training.models import create_classifier
from training.parameters import Positional


class Convert(Command):
    """Turn a checkpoint into a safetensors file with timm's names, for a recipe to start from.

    Example: saucier convert efficientnet-lite0-57934424.pth --arch tf_efficientnet_lite0 --match order --out
    .data/efficientnet-lite0.safetensors
    """

    name: ClassVar[str] = "convert"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    checkpoint: Annotated[Path, Positional] = Field(
        description="safetensors, or torch.save's; pickle with code is refused"
    )
    arch: str = Field(description="name in timm's registry")
    num_classes: int | None = Field(default=None, ge=1, description="width of the last layer; default: timm's")
    match: Match = Field(
        default="name",
        description="name: by timm's names; order: the n-th tensor is the network's n-th, where names differ and "
        "shapes agree one to one. Test the accuracy afterwards",
    )
    key: str | None = Field(default=None, description="where in the checkpoint the weights are, e.g. model_ema")
    half: bool = Field(default=False, description="store 16 bits a number; statistics of BatchNorm stay at 32")
    out: Path = Field(description="the new .safetensors file")

    def execute(self) -> Result:
        """Read, match, write."""
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out: expected a file ending in .safetensors, got {self.out}")
        if self.out.exists():
            raise FileExistsError(f"{self.out}: already exists; choose another --out or remove it")
        config: Any = timm.get_pretrained_cfg(self.arch) if timm.is_model(self.arch) else None
        if (num_classes := self.num_classes or getattr(config, "num_classes", None)) is None:
            raise ValueError(f"--num-classes: timm does not say how many classes {self.arch!r} has: give it")
        _, height, width = getattr(config, "input_size", None) or (3, 224, 224)
        spec = InputSpec(height=height, width=width, mean=(0, 0, 0), std=(1, 1, 1))
        net = create_classifier(Architecture(name=self.arch), spec, num_classes).net
        found = load_weights(self.checkpoint, net, key=self.key, match=self.match).state_dict
        tensors = {
            name: (tensor.half() if self.half and "running_" not in name else tensor).contiguous()
            for name, tensor in found.items()
            if name.rpartition(".")[2] not in COUNTERS
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, self.out)
        self.out.chmod(0o644)
        data = {"file": str(self.out), "sha256": file_sha256(self.out), "tensors": len(tensors), "match": self.match}
        return Result(data, f"wrote {self.out}: {len(tensors)} tensors, matched by {self.match}")
