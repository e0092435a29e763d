"""The settings of a search: one document for command line, service and benchmarks."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adapt.documents.soup import BnMode, Strategy
from adapt.evidence.draws import Draw
from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_level, p_threshold
from adapt.evidence.policies import Promote
from adapt.evidence.posterior import HARM
from adapt.rungs.registry import LADDER
from adapt.search.grid import GridKind
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.documents import Frozen
from training.nearest import meant

RUNGS = tuple(LADDER)


class SearchConfig(Frozen):
    """How to search. Nothing in it says on what images, or which soup is to be beaten."""

    strategy: Strategy = Field(
        default="auto", description="grid: every soup; surrogate: the most promising; auto: the cheaper"
    )
    rungs: tuple[str, ...] = Field(
        default=RUNGS, description="what is tried beside the coefficients; no value: coefficients alone"
    )
    effort: Literal["quick", "full"] = Field(
        default="quick", description="quick leaves out rungs that train weights; full tries all"
    )
    grid: GridKind = Field(default="affine", description="affine extrapolates a little, simplex does not")
    step: float | None = Field(default=None, description="grid step; default 0.25 (affine), 0.1 (simplex)")
    bn_mode: BnMode = Field(default="folded", description="mix BatchNorm folded into the weights, or raw")
    balance: bool = Field(default=False, description="let every class count alike, however many images it has")
    draw: Draw = Field(
        default="any", description="fair: classes are as frequent here as in use, so that the images may judge that"
    )
    promote: Promote = Field(
        default="auto",
        description="auto: what is proven better; likely: also what is probably better and hardly worse; always and "
        "never overrule the evidence",
    )
    attempt: int = Field(default=1, ge=1, description="number of this comparison; later ones are stricter")
    earlier: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="numbers of images of the latest earlier attempts; 0 where the next attempt lacks some of them",
    )
    false_promotions: float = Field(
        default=FALSE_PROMOTIONS, gt=0, lt=1, description="chance of any false promotion over all attempts"
    )
    harm: float = Field(default=HARM, gt=0, lt=1, description="loss of accuracy whose chance promote=likely bounds")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")
    seed: int = Field(default=0, ge=0, description="seed of every random choice")

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if (unknown := sorted(set(self.rungs) - set(LADDER))) or len(set(self.rungs)) != len(self.rungs):
            hint = meant(unknown[0], LADDER) if unknown else ""
            raise ValueError(
                f"rungs: expected some of {list(LADDER)}, each at most once, got {unknown or self.rungs}{hint}"
            )
        if len(self.earlier) >= self.attempt:
            raise ValueError(
                f"earlier: expected fewer sizes than attempt = {self.attempt}, got {len(self.earlier)}: an attempt "
                "with two earlier ones is number 3"
            )
        return self

    def threshold(self, n: int, num_judged: int) -> float:
        """Return the p-value below which "auto" promotes where there are n labelled images and `num_judged` judge."""
        level = attempt_level(self.attempt, (*self.earlier, n), total=self.false_promotions)
        return p_threshold(level, max(1, num_judged))
