"""Lists over HTTP come in pages: each entry once, the same answer as before where nobody asks for pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from adapt.documents.soup import SupportSummary
from service.http.schemas import PAGES
from service.store.database import Database
from service.store.jobs import add_job
from service.store.transactions import get_deployment
from tests.service.conftest import Server

pytestmark = pytest.mark.e2e

NAME = "paged"
KEYS = {"deployments": "deployment", "soups": "version", "events": "seq", "jobs": "job"}
MOVES = 9


@pytest.fixture(scope="module")
def paged(server: Server) -> Iterator[Server]:
    """A server with a deployment that has a history."""
    client = server.client
    for name in (NAME, "paged-a", "paged-b"):
        assert client.put(f"/deployments/{name}", json={"base_set": "tiny"}).status_code == 201
    for number in range(MOVES):
        coefficients = {"linf": number / 10, "nominal": 1 - number / 10, "l2": 0.0, "l1": 0.0}
        assert client.put(f"/deployments/{NAME}/soup", json={"coefficients": coefficients}).status_code == 200
    database = Database(f"sqlite:///{server.home / 'registry.db'}")
    for number in range(5):  # of which nothing is kept: they fail at once
        with database.write() as session:
            add_job(
                session,
                get_deployment(session, NAME, lock=True),
                job=f"{number:032x}",
                strategy="auto",
                promote="never",
                samples_digest=f"{number}",
                support=SupportSummary(n=1, per_class={}),
                max_queued=100,
                selection=b"",
            )
    database.close()

    def all_failed() -> bool:
        jobs = client.get(f"/deployments/{NAME}/jobs").json()["jobs"]
        return [job["state"] for job in jobs] == ["failed"] * 5

    server.wait_for(all_failed, "jobs end", 60)
    yield server
    for name in (NAME, "paged-a", "paged-b"):
        client.delete(f"/deployments/{name}")


def path(items: str) -> str:
    return "/deployments" if items == "deployments" else f"/deployments/{NAME}/{items}"


@pytest.mark.parametrize("items", KEYS)
def test_pages_together_are_the_list(paged: Server, items: str) -> None:
    def page(**query: Any) -> dict[str, Any]:
        answer = paged.client.get(path(items), params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    whole = page()
    assert whole["next"] is None
    assert len(whole[items]) > 2
    found, query = [], {"limit": 2}
    while query:
        part = page(**query)
        assert 0 < len(part[items]) <= 2
        found += part[items]
        query = {} if part["next"] is None else {"limit": 2, "before": part["next"]}
        assert part["next"] in (None, part[items][-1][KEYS[items]])
    assert found == whole[items]
    assert page(limit=10**9)[items] == whole[items]
    assert page(limit=len(whole[items]))["next"] is None


@pytest.mark.parametrize("items", KEYS)
def test_what_is_no_page_is_said_so(paged: Server, items: str) -> None:
    for wrong in ({"limit": 0}, {"limit": "all"}, {"after": "1"}):
        answer = paged.client.get(path(items), params=wrong)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert answer.json()["errors"][0]["field"] in wrong
    status = {"deployments": 200, "jobs": 404}.get(items, 400)  # any text has its place among names
    for before in ("", "No!", "a\0b"):
        assert paged.client.get(path(items), params={"before": before}).status_code == status


def test_pages_are_bounded(paged: Server) -> None:
    document = paged.client.get("/openapi.json").json()["paths"]
    for items, (default, most) in PAGES.items():
        where = path(items).replace(NAME, "{name}")
        limit = next(one for one in document[where]["get"]["parameters"] if one["name"] == "limit")
        assert limit["schema"]["default"] == default <= most <= 1000
        assert str(most) in limit["description"]
