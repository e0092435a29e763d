"""The console ends adaptations that wait or run, in a real browser against a real server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from tests.service.conftest import Labelled, Server
from tests.service.console import agree, console, shown, write_folders
from tests.service.test_console_access import tab_to

pytestmark = pytest.mark.e2e

NAME = "cancelling"


@pytest.fixture
def shop(server: Server) -> Iterator[str]:
    """A deployment of the test's own."""
    assert server.client.put(f"/deployments/{NAME}", json={"base_set": "tiny"}).status_code == 201
    yield NAME
    server.client.delete(f"/deployments/{NAME}")


@contextmanager
def held(server: Server) -> Iterator[psutil.Process]:
    """Hold the adapter: jobs wait meanwhile."""
    (adapter,) = server.processes("Adapter")
    adapter.suspend()
    try:
        yield adapter
    finally:
        adapter.resume()


def newest(server: Server) -> dict:
    job: dict = server.client.get(f"/deployments/{NAME}/jobs").json()["jobs"][0]
    return job


def test_waiting_adaptation_is_cancelled_by_keyboard(
    browser: Browser, server: Server, shop: str, labelled: Labelled, tmp_path: Path
) -> None:
    with held(server), console(browser, server, at=f"#/{shop}") as page:
        shown(page, shop)
        page.set_input_files("#pick-folder", write_folders(labelled, 0, 30, tmp_path / "shop"))
        page.click("#adapt-start")
        expect(page.locator("#adapt .progress-text")).to_contain_text("Waiting for the adapter")
        tab_to(page, "#adapt-cancel")
        page.keyboard.press("Enter")
        expect(page.locator("#dialog-title")).to_have_text("Cancel the adaptation that waits?")
        expect(page.locator("#dialog-body")).to_contain_text("version 1 stays served")
        expect(page.locator("#dialog-no")).to_be_focused()
        expect(page.locator("#dialog-no")).to_have_text("Go on")
        page.keyboard.press("Enter")
        expect(page.locator("#dialog")).to_be_hidden()
        assert newest(server)["state"] == "queued"
        expect(page.locator("#adapt-cancel")).to_be_focused()
        page.keyboard.press("Enter")
        tab_to(page, "#dialog-yes", most=2)
        page.keyboard.press("Enter")
        result = page.locator(".result.failed")
        expect(result.locator("h3")).to_have_text("Cancelled")
        expect(result.locator("h3")).to_be_focused()
        expect(page.locator("#announcements")).to_contain_text("cancelled", ignore_case=True)
        assert (newest(server)["state"], newest(server)["reason"]) == ("failed", "cancelled")
        assert server.client.get(f"/deployments/{shop}/samples").json()["images"] == 30  # as the question said


def test_waiting_and_running_adaptations_are_cancelled_in_their_list(
    browser: Browser, server: Server, shop: str, labelled: Labelled
) -> None:
    with held(server) as adapter:
        first, waiting = (
            server.client.post(f"/adapt?deployment={shop}&wait=0", **labelled.request(0, count)).json()["job"]
            for count in (200, 40)
        )
        adapter.resume()
        server.wait_for(lambda: server.client.get(f"/jobs/{first}").json()["state"] != "queued", "job that runs")
        adapter.suspend()
        assert server.client.get(f"/jobs/{first}").json()["state"] == "running"
        with console(browser, server, at=f"#/{shop}") as page:
            shown(page, shop)
            for job, state in ((waiting, "waits"), (first, "runs")):
                row = page.locator(f"#jobs tr[data-job='{job}']")
                button = row.get_by_role("button", name="Cancel the adaptation of")
                button.click()
                expect(page.locator("#dialog-title")).to_have_text(f"Cancel the adaptation that {state}?")
                agree(page)
                expect(row).to_contain_text("failed")
                expect(row).to_contain_text("cancelled")
                expect(button).to_have_count(0)
                expect(page.locator("#jobs-title")).to_be_focused()
    assert server.client.get(f"/deployments/{shop}").json()["version"] == 1


def test_adaptation_that_ended_meanwhile_is_shown_as_it_ended(
    browser: Browser, server: Server, shop: str, labelled: Labelled
) -> None:
    with held(server) as adapter, console(browser, server, at=f"#/{shop}", refused={409}) as page:
        job = server.client.post(f"/adapt?deployment={shop}&wait=0&promote=never", **labelled.request(0, 9)).json()[
            "job"
        ]
        page.reload()
        shown(page, shop)
        page.click(f"#jobs tr[data-job='{job}'] button")
        adapter.resume()
        server.wait_for(lambda: server.client.get(f"/jobs/{job}").json()["state"] == "kept", "end of the job")
        agree(page)
        expect(page.locator("#page-problem")).to_contain_text("the job has ended already: kept")
        expect(page.locator("#page-problem")).to_contain_text("Nothing was changed")
        expect(page.locator(f"#jobs tr[data-job='{job}']")).to_contain_text("kept")
        # The fault: whatever changed next took the message away, unread.
        dial = {"coefficients": {"linf": 0.5, "nominal": 0.5, "l2": 0.0, "l1": 0.0}}
        assert server.client.put(f"/deployments/{shop}/soup", json=dial).status_code == 200
        expect(page.locator("#deployments")).to_contain_text(f"{shop}tiny, version 3")
        expect(page.locator("#page-problem")).to_contain_text("Nothing was changed")


def test_focus_stays_in_the_list_that_was_drawn_again_behind_a_dialog(
    browser: Browser, server: Server, shop: str, labelled: Labelled
) -> None:
    """The fault: what had the focus before was gone, and after the dialog nothing had it."""
    with held(server), console(browser, server, at=f"#/{shop}") as page:
        server.client.post(f"/adapt?deployment={shop}&wait=0", **labelled.request(0, 30)).raise_for_status()
        page.reload()
        shown(page, shop)
        page.click("#jobs tr button")
        expect(page.locator("#dialog")).to_be_visible()
        page.evaluate("document.querySelector('#jobs table').id = 'before'")
        dial = {"coefficients": {"linf": 0.5, "nominal": 0.5, "l2": 0.0, "l1": 0.0}}
        assert server.client.put(f"/deployments/{shop}/soup", json=dial).status_code == 200
        expect(page.locator("#before")).to_have_count(0)
        page.click("#dialog-no")
        expect(page.locator("#dialog")).to_be_hidden()
        expect(page.locator("#jobs-title")).to_be_focused()
