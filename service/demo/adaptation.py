"""Labelled images are posted to `/adapt` and the job is waited for, as a client does it."""

import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from service.demo.server import Server

WAIT_SECONDS = 50  # the most that one request may wait


class Unfinished(RuntimeError):
    """A job that takes longer than its caller wants to wait."""


def adapt(server: Server, files: Sequence[bytes], labels: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """Post labelled images to `/adapt` and return the finished job, once every worker serves what it promoted.

    Args:
        server: the service.
        files: JPEG files.
        labels: class names, in order.
        seconds: how long the job may take.

    Raises:
        Unfinished: it takes longer.
        RuntimeError: it failed; the message says why.
        httpx.HTTPError: the request was refused, or the service is gone.
    """
    start = time.monotonic()
    parts = [("images", (f"{number}.jpg", file, "image/jpeg")) for number, file in enumerate(files)]
    wait = int(min(seconds, WAIT_SECONDS))
    with httpx.Client(base_url=server.url, timeout=WAIT_SECONDS + 20) as client:
        query: dict[str, str | int] = {"wait": wait, "effort": "quick"}  # nothing trains while things are measured
        answer = client.post("/adapt", params=query, files=parts, data={"labels": json.dumps(labels)})
        answer.raise_for_status()
        job: dict[str, Any] = answer.json()
        if answer.status_code == 202:
            job = _follow(client, job["job"], start + seconds)
    if job["state"] == "failed":
        raise RuntimeError(f"the adaptation failed: {job['reason']}")
    return job


def _follow(client: httpx.Client, job_id: str, deadline: float) -> dict[str, Any]:
    """Wait for a job that takes longer than one request may wait."""
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["finished_at"] is not None and client.get(f"/deployments/{job['deployment']}").json()["is_rolled_out"]:
            return job
        if time.monotonic() >= deadline:
            raise Unfinished(f"expected the job to end in time, it is {job['state']}: {job['message']}")
        time.sleep(0.1)
