"""What Schemathesis checks beside its own, in its process: roles hold, and answers tell nothing of the inside.

The test that starts it says by the environment who asks, and what no answer may hold.
"""

import os
from typing import Any

import schemathesis

ROLE, SECRETS = "FUZZ_ROLE", "FUZZ_SECRETS"
OPEN = {
    "GET /livez",
    "GET /readyz",
    "GET /v2/health/live",
    "GET /v2/health/ready",
}
PREDICT = OPEN | {
    "POST /predict",
    "POST /deployments/{name}/soups/{version}/predict",
    "GET /whoami",
    "GET /bases",
    "GET /metrics",
    "GET /deployments",
    "GET /deployments/{name}",
    "GET /deployments/{name}/soups",
    "GET /v2",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "POST /v2/models/{name}/infer",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/ready",
    "POST /v2/models/{name}/versions/{version}/infer",
}
ADAPT = PREDICT | {
    "POST /adapt",
    "GET /jobs/{id}",
    "DELETE /jobs/{id}",
    "GET /jobs/{id}/events",
    "GET /jobs/{id}/landscape",
    "GET /deployments/{name}/jobs",
    "GET /deployments/{name}/events",
    "GET /deployments/{name}/samples",
}
# Written out here and not taken from the service's own table, which may be wrong.
MAY = {"nobody": OPEN, "predict": PREDICT, "adapt": ADAPT}


@schemathesis.check
def roles_hold(_: Any, response: Any, case: Any) -> None:
    """A key gets nothing done, and is told nothing, that its role may not."""
    may = MAY.get(os.environ.get(ROLE, ""))
    asked = f"{case.method} {case.operation.path}"
    if may is not None and asked not in may and response.status_code < 400:
        raise AssertionError(f"{os.environ[ROLE]} was let in to {asked}: {response.status_code}")


@schemathesis.check
def nothing_of_the_inside(_: Any, response: Any, __: Any) -> None:
    """No stack trace, no folder of the machine, no key."""
    for secret in filter(None, os.environ.get(SECRETS, "").split(os.pathsep)):
        if secret.encode() in response.content:
            raise AssertionError(f"the answer holds {secret!r}")
