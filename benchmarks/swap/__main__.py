"""How long a decision takes to reach every worker, and what the clients notice of it."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from benchmarks.machine import machine
from benchmarks.pictures import jpegs
from service.demo.client import Load, hammer, post_request
from service.demo.server import Server, serve
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.manifest import read_manifest
from training.parameters import Positional

TARGET_SECONDS = 1.5


class Swap(Command):
    """Turn the dial again and again under load: time until the last answer of the old soup, failed requests, tails.

    Example: python -m benchmarks.swap bases/cifar10-small --swaps 20
    """

    name: ClassVar[str] = "swap"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    swaps: int = Field(default=20, ge=1, description="decisions")
    concurrency: int = Field(default=8, ge=1, description="clients that keep predicting")
    pause: float = Field(default=1.5, gt=0, description="seconds between decisions")
    workers: int = Field(default=2, ge=1, description="predictor processes")

    def execute(self) -> Result:
        """Measure."""
        manifest = read_manifest(self.base)
        files = jpegs(32, manifest.input.height, manifest.input.width, seed=self.seed)
        names = manifest.ingredient_names
        dials = [
            dict(zip(names, np.roll([0.5, 0.5] + [0.0] * (len(names) - 2), turn).tolist(), strict=True))
            for turn in range(2)
        ]
        with (
            tempfile.TemporaryDirectory(prefix="saucier-") as name,
            serve(Path(name), self.base, workers=self.workers) as server,
        ):
            requests = [post_request("/predict", file, "image/jpeg", server.port) for file in files]
            data = asyncio.run(self._measure(server, requests, dials))
        data |= {"workers": self.workers, "concurrency": self.concurrency, "machine": machine()}
        holds = (
            data["failed"] == 0
            and data["late_answers"] == 0
            and data["decision_to_last_worker_s"]["max"] <= TARGET_SECONDS
        )
        return Result(data, _text(data), EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    async def _measure(self, server: Server, requests: list[bytes], dials: list[dict[str, float]]) -> dict[str, Any]:
        answers: list[tuple[float, float, int]] = []  # sent, received, version

        def note(sent: float, received: float, body: bytes, _: int) -> None:
            answers.append((sent, received, json.loads(body)["version"]))

        calm = await hammer(server.port, requests, concurrency=self.concurrency, seconds=5)
        stop = asyncio.Event()
        task = asyncio.create_task(
            hammer(server.port, requests, concurrency=self.concurrency, seconds=3600, stop=stop, on_answer=note)
        )
        decisions: list[tuple[float, float, int]] = []  # decided, acknowledged, version
        for turn in range(self.swaps):
            await asyncio.sleep(self.pause)
            decided = time.perf_counter()
            body = {"coefficients": dials[turn % len(dials)]}
            answer = await asyncio.to_thread(server.call, "PUT", "/deployments/default/soup", body)
            decisions.append((decided, time.perf_counter(), answer["version"]))
        await asyncio.sleep(self.pause)
        stop.set()
        return _summary(calm, await task, decisions, answers)


def _summary(
    calm: Load, load: Load, decisions: list[tuple[float, float, int]], answers: list[tuple[float, float, int]]
) -> dict[str, Any]:
    waits, late = [], 0
    for decided, acknowledged, version in decisions:
        old = [received for sent, received, served in answers if served < version and received > decided]
        waits.append(max(old, default=decided) - decided)
        # Once the decision is acknowledged as rolled out, a request sent afterwards must see the new version.
        late += sum(served < version for sent, _, served in answers if sent > acknowledged)
    return {
        "swaps": len(decisions),
        "requests": len(load.latencies) + len(load.failed),
        "failed": len(load.failed),
        "late_answers": late,
        "decision_to_last_worker_s": {
            "median": round(float(np.median(waits)), 3),
            "max": round(float(np.max(waits)), 3),
        },
        "acknowledged_after_s": {
            "median": round(float(np.median([ack - decided for decided, ack, _ in decisions])), 3),
            "max": round(float(np.max([ack - decided for decided, ack, _ in decisions])), 3),
        },
        "calm": {"p50_ms": round(calm.percentile_ms(50), 2), "p99_ms": round(calm.percentile_ms(99), 2)},
        "swapping": {"p50_ms": round(load.percentile_ms(50), 2), "p99_ms": round(load.percentile_ms(99), 2)},
        "target_s": TARGET_SECONDS,
    }


def _text(data: dict[str, Any]) -> str:
    last, acknowledged = data["decision_to_last_worker_s"], data["acknowledged_after_s"]
    calm, swapping = data["calm"], data["swapping"]
    return "\n".join(
        [
            f"{data['swaps']} swaps, {data['workers']} workers, {data['concurrency']} clients; {data['machine']}",
            f"decision to the last answer of the old soup: median {last['median']} s, max {last['max']} s "
            f"(target: at most {data['target_s']} s)",
            f"decision to the acknowledgement: median {acknowledged['median']} s, max {acknowledged['max']} s",
            f"requests {data['requests']}, failed {data['failed']}, "
            f"answers of an old soup after the acknowledgement {data['late_answers']}",
            f"p50/p99 ms: calm {calm['p50_ms']}/{calm['p99_ms']}, swapping {swapping['p50_ms']}/{swapping['p99_ms']}",
        ]
    )


if __name__ == "__main__":
    sys.exit(run([Swap], prog="python -m benchmarks.swap", description="Speed of a swap."))
