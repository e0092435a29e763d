"""Where and how a training run computes: processes, precision, memory. What is learnt stands in the recipe."""

import os
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn

from training.augmentation import Part
from training.device_names import AUTO, DeviceName
from training.devices import pick_device
from training.documents import Frozen

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Compute(Frozen):
    """The machine's side of a training run."""

    device: DeviceName = AUTO
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast, weights stay fp32")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="images per process and pass; a larger share of a batch is split",
    )
    compiled: bool = Field(default=False, description="compile the network by torch.compile")
    threads: int | None = Field(default=None, ge=1, description="torch CPU threads; null: torch's own choice")
    tracker: Tracker | None = Field(default=None, description="where loss and accuracy are also sent")
    log_dir: str = Field(default="runs", description="folder of the tracker")

    def accelerator(self) -> Accelerator:
        """Return the process group as `accelerate launch` or `torchrun` set it up; one process without them.

        Raises:
            ValueError: no CUDA device where one was asked for, one of several where the launcher deals them out, or a
                tracker that is not installed.
        """
        device = pick_device(self.device)
        if device.index is not None:
            if "LOCAL_RANK" in os.environ:
                raise ValueError(f"device {device}: the launcher gives every process its device: use cuda")
            torch.cuda.set_device(device)  # which "cuda" means from now on
        if self.tracker is not None and self.tracker not in {str(kind) for kind in get_available_trackers()}:
            raise ValueError(f"tracker {self.tracker}: not installed; pip install {self.tracker}")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            log_with=self.tracker,
            project_dir=self.log_dir,
            # The statistics of BatchNorm are averaged once per epoch; sending them with every pass costs more.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )


def share_statistics(classifier: nn.Module, part: Part, device: torch.device) -> None:
    """Let BatchNorm layers, changed in place, normalise by the whole batch where several GPUs share it.

    timm's conversion keeps the activation that its own layers have inside.
    """
    if part.of > 1 and device.type == "cuda":
        convert_sync_batchnorm(classifier)  # type: ignore[no-untyped-call]


def part_of(accelerator: Accelerator) -> Part:
    """Return this process's share of every batch."""
    return Part(accelerator.process_index, accelerator.num_processes)
