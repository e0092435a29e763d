"""What is tried of each rival's hyper-parameters, by number of labelled pictures."""

from collections.abc import Mapping, Sequence
from itertools import product

from benchmarks.shifts.finetuning import Schedule
from benchmarks.shifts.options import (
    Eata,
    FineTuning,
    Learned,
    Options,
    Probing,
    Recalibration,
    Refit,
    Roid,
    Sar,
    Surgery,
    T3a,
    Tent,
)
from training.manifest import Manifest

Grid = Mapping[str, Mapping[int, Sequence[Options]]]

LEARNED: tuple[Learned, ...] = ("support", "unseen")
LARGE_INPUT = 64  # pixels above which networks are taken to be pretrained ones for photographs


def _schedules(lrs: Sequence[float], steps: int) -> list[Schedule]:
    return [Schedule(lr=lr, steps=steps) for lr in lrs]


def _tents(lrs: Sequence[float]) -> list[Tent]:
    return [
        Tent(learns_on=images, lr=lr, epochs=1 if images == "unseen" else 5) for images, lr in product(LEARNED, lrs)
    ]


def _fine_tunings(by_n: Mapping[int, Sequence[Schedule]]) -> dict[int, Sequence[Options]]:
    return {n: [FineTuning(schedule=schedule) for schedule in schedules] for n, schedules in by_n.items()}


# For networks that were trained from nothing on small pictures; a step is of 20, 50 or 63 of them. Higher rates than
# these, and more steps with few pictures, ended below what training starts from. All start from what `picked_bn` picks;
# on these shifts that was the nominal ingredient each time.
GRID: Grid = {
    "picked_bn": {n: [Recalibration(prior_images=prior) for prior in (0.5, 1, 2, 4, 8, 16)] for n in (20, 100)},
    "picked_head": {n: [Refit(min_images=least) for least in (0, 50)] for n in (20, 100)},
    "finetune": _fine_tunings(
        {
            20: _schedules((1e-5, 3e-5, 1e-4, 3e-4), 40),
            100: _schedules((3e-5, 1e-4, 3e-4), 60),
            1000: _schedules((1e-4, 3e-4, 1e-3), 250),
        }
    ),
    "surgical": {
        n: [Surgery(part=part, schedule=schedule) for part, schedule in product(parts, schedules)]
        for n, parts, schedules in (
            (20, (0, 0.25, 1), _schedules((3e-4, 1e-3), 60)),
            (100, (0, 0.25, 1), _schedules((3e-4, 1e-3), 80)),
            (1000, (0, 0.25), _schedules([1e-3], 250)),
        )
    },
    "tent": {n: _tents((3e-4, 1e-3, 3e-3, 1e-2)) for n in (20, 100)},
}

# For pretrained networks on photographs: all weights have further to go. What does without labels is the same for any
# number of them, so it is tried at one.
PHOTO_GRID: Grid = {
    "picked_bn": {n: [Recalibration(prior_images=prior) for prior in (1, 4, 16, 64)] for n in (20, 100)},
    "picked_head": {n: [Refit(min_images=least) for least in (0, 50)] for n in (20, 100)},
    "finetune_nominal": _fine_tunings(
        {
            20: _schedules((1e-4, 3e-4, 1e-3), 60),
            100: _schedules((3e-4, 1e-3, 3e-3), 100),
            1000: _schedules((3e-4, 1e-3), 300),
        }
    ),
    "lp_ft": _fine_tunings(
        {
            20: _schedules((1e-4, 3e-4, 1e-3), 60),
            100: _schedules((3e-4, 1e-3, 3e-3), 100),
            1000: _schedules((3e-4, 1e-3), 300),
        }
    ),
    "surgical": {
        n: [Surgery(part=part, schedule=schedule) for part, schedule in product(parts, schedules)]
        for n, parts, schedules in (
            (20, (0.25, 0.5, 0.75), _schedules([1e-3], 60)),
            (100, (0.25, 0.5, 0.75), _schedules([1e-3], 100)),
        )
    },
    "probe": {n: [Probing(penalty=penalty) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)] for n in (20, 100, 1000)},
    "tent": {100: _tents((3e-4, 1e-3, 3e-3))},
    "eata": {
        100: [
            Eata(lr=lr, similarity=similarity, anchor=1.0) for similarity, lr in product((0.4, 1.0), (1e-3, 5e-3, 2e-2))
        ]
    },
    "sar": {100: [Sar(lr=lr) for lr in (1e-3, 5e-3, 2e-2)]},
    "roid": {100: [Roid(lr=lr) for lr in (3e-4, 1e-3, 3e-3)]},
    "t3a": {100: [T3a(most=most) for most in (1, 5, 20, 50, 100, None)]},
}
SAME = {"finetune": "finetune_nominal"}  # methods that take the choice of another where they were not tried themselves


def grid_for(manifest: Manifest) -> Grid:
    """Return what is tried for a base set, less what its networks have no use for."""
    return PHOTO_GRID if is_large(manifest) else GRID


def is_large(manifest: Manifest) -> bool:
    """Say whether a base set is taken to be one of pretrained networks for photographs."""
    return max(manifest.input.height, manifest.input.width) > LARGE_INPUT


def middle(method: str, n: int) -> Options:
    """Return the middle of what is tried of a method on photographs at the nearest number of labelled pictures.

    Where a method was never tuned, it stands in for the choice.
    """
    by_n = PHOTO_GRID[SAME.get(method, method)]
    tried = by_n[min(by_n, key=lambda count: (abs(count - n), count))]
    return tried[len(tried) // 2]
