"""What an operator does with the console, in a real browser against a real server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from adapt.evidence.levels import p_threshold
from tests.service.conftest import Labelled, Server, as_parts
from tests.service.console import agree, console, current, drop, shown, write_folders
from tests.service.test_console_http import landscape_of

pytestmark = pytest.mark.e2e

NAMES = ("linf", "nominal", "l2", "l1")


@pytest.fixture
def name(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A deployment of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")
    assert server.client.put(f"/deployments/{name}", json={"base_set": "tiny"}).status_code == 201
    yield name
    server.client.delete(f"/deployments/{name}")


def adapted(server: Server, name: str, labelled: Labelled, count: int = 100, promote: str = "never") -> dict:
    """Adapt over HTTP; return the job."""
    answer = server.client.post(f"/adapt?deployment={name}&promote={promote}", **labelled.request(0, count))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_dropped_folder_is_adapted_to_promoted_and_rolled_back(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        expect(page.locator("#adapt-start")).to_be_disabled()
        drop(page, "#adapt .drop", write_folders(labelled, 0, 120, tmp_path / "shop"))
        classes = sorted({labelled.class_names[label] for label in labelled.labels[:120]})
        expect(page.locator(".group select")).to_have_count(len(classes))
        assert page.locator(".group select").evaluate_all("all => all.map(one => one.value)") == classes
        assert page.locator(".thumbnails img").evaluate_all("all => all.every(one => one.naturalWidth === 16)")
        page.click("#adapt-start")
        page.wait_for_selector("#job-progress")
        result = page.locator(".result.promoted")
        expect(result.locator("h3")).to_have_text("Promoted: version 2 is served")
        job = server.client.get(f"/deployments/{name}/jobs").json()["jobs"][0]
        assert (job["state"], job["support"]["n"]) == ("promoted", 120)
        for share in (job["accuracy"]["current"], job["accuracy"]["candidate"]):
            expect(result).to_contain_text(f"{100 * share:.1f}\u202f%")
        expect(result).to_contain_text("95\u202f% interval")
        expect(page.locator("#announcements")).to_contain_text("Promoted: version 2 is served")
        expect(page.locator("#summary")).to_contain_text("version 2")
        expect(page.locator("#soup tbody tr")).to_have_count(4)
        assert page.locator("#soup tbody td:nth-child(3)").all_inner_texts() == [
            f"{value:.3f}".replace("-", "\u2212") for value in job["coefficients"].values()
        ]

        page.click("#versions tr[data-version='1'] button")
        expect(page.locator("#dialog-no")).to_be_focused()
        agree(page)
        expect(page.locator("#versions tr.current")).to_have_attribute("data-version", "1")
        assert current(server, name)["version"] == 1
        expect(page.locator("#versions-title")).to_be_focused()

        log = page.locator("#events tbody tr")
        expect(log).to_have_count(3)
        assert [row.split("\t")[1:4] for row in log.all_inner_texts()] == [
            ["Set to a stored version", "2", "1"],
            ["Promoted", "1", "2"],
            ["Made", "\u2013", "1"],
        ]

        page.click("#versions tr[data-version='2'] summary")
        expect(page.locator("#versions tr[data-version='2']")).to_contain_text(job["reason"])
        page.click("#versions tr[data-version='2'] button")
        page.click("#dialog-no")
        assert current(server, name)["version"] == 1


def test_what_the_watch_did_is_listed_with_its_reason(
    browser: Browser, server: Server, name: str, labelled: Labelled
) -> None:
    client, fact = server.client, "#soup .facts"
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        expect(page.locator(fact)).to_contain_text(re.compile(r"Watch\s*off"))
        assert client.put(f"/deployments/{name}/watch", json={}).status_code == 201
        for values in ((0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 2.0, 0.0)):  # right, and mostly wrong
            client.put(f"/deployments/{name}/soup", json={"coefficients": dict(zip(NAMES, values, strict=True))})
        expect(page.locator(fact)).to_contain_text("on, compares with version 2")
        reason = adapted(server, name, labelled, 60)["reason"]
        expect(page.locator(fact)).to_contain_text(re.compile(r"Watch\s*on(?!,)"))
        newest = page.locator("#events tbody tr").first
        expect(newest).to_contain_text("Set to a stored version")
        expect(newest).to_contain_text("(watch)")
        expect(newest.locator(".hint")).to_contain_text("version 2 before it has accuracy 1.000")
        assert newest.locator(".hint").inner_text() in reason


def test_archive_is_kept_as_a_candidate_and_promoted_by_hand(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "shop"), "zip", write_folders(labelled, 0, 100, tmp_path / "shop"))
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        page.set_input_files("#pick-files", archive)
        page.select_option("#promote", "never")
        page.click("#adapt-start")
        result = page.locator(".result.kept")
        result.get_by_role("button", name="Promote version 2 all the same").click()
        expect(page.locator("#dialog-body")).to_contain_text("p\u00a0")
        agree(page)
        expect(page.locator("#summary")).to_contain_text("version 2")
        assert current(server, name)["version"] == 2


def test_it_says_what_judged_a_version_and_how_often_it_was_tried(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    assert adapted(server, name, labelled, 60, "always")["state"] == "promoted"
    job = adapted(server, name, labelled, 100)
    assert job["accuracy"]["judged"] == {"fresh": 40, "held_out": 60, "left_out": 0}
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        now = page.locator("#forecast-now")
        expect(now).to_contain_text(f"{100 * job['accuracy']['current']:.1f}\u202f%")
        expect(now).to_contain_text("on 40 new images and 60 held-out answers")
        expect(page.locator("#promote-hint")).to_be_hidden()
        page.select_option("#promote", "likely")
        expect(page.locator("#promote-hint")).to_contain_text("below 5\u202f%")
        page.set_input_files("#pick-folder", write_folders(labelled, 100, 140, tmp_path / "shop"))
        page.click("#adapt-start")
        result = page.locator(".result")
        expect(result).to_contain_text("Both soups are judged on 40 new images.")
        below = f"it promotes below p\u00a0=\u00a0{p_threshold(0.05 / 6, 40):.2g}."
        expect(result).to_contain_text(f"Attempt 2 against the version served then: {below}")
        latest = server.client.get(f"/deployments/{name}/jobs").json()["jobs"][0]
        assert (latest["attempt"], latest["level"]) == (2, pytest.approx(p_threshold(0.05 / 6, 40)))
        found = page.locator(f"#versions tr[data-version='{latest['candidate_version']}']")
        found.locator("summary").click()
        expect(found).to_contain_text("Both were judged on")
        expect(found).to_contain_text("Attempt ")


def test_class_frequencies_are_shown_with_their_intervals(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        expect(page.locator("#draw-hint")).to_be_hidden()
        page.select_option("#draw", "fair")
        expect(page.locator("#draw-hint")).to_contain_text("Classes are as frequent")
        page.select_option("#promote", "never")
        page.set_input_files("#pick-folder", write_folders(labelled, 0, 90, tmp_path / "shop"))
        page.click("#adapt-start")
        folded = page.locator(".result .class-frequencies")
        expect(folded.locator("table")).to_be_hidden()
        folded.locator("summary").click()
        job = server.client.get(f"/deployments/{name}/jobs").json()["jobs"][0]
        assert (job["draw"], job["support"]["n"]) == ("fair", 90)
        expect(folded.locator("tbody tr")).to_have_count(3)
        for each in job["classes"]:
            row = folded.locator("tbody tr", has_text=each["name"])
            expect(row).to_contain_text(f"{100 * each['estimated']:.1f}\u202f%")
            expect(row).to_contain_text(f"{100 * each['low']:.1f}\u202f% to {100 * each['high']:.1f}\u202f%")


def test_single_pictures_want_a_class_and_a_bad_one_is_named(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(labelled.files[index])
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    (tmp_path / "notes.txt").write_text("nothing to see")
    with console(browser, server, at=f"#/{name}", refused={422}) as page:
        shown(page, name)
        drop(page, "#adapt .drop", *sorted(tmp_path.iterdir()))
        expect(page.locator(".staged")).to_contain_text("notes.txt")
        page.click("#adapt-start")
        expect(page.locator("#adapt [role=alert]")).to_contain_text("Choose a class")
        page.select_option(".group select", "dog")
        page.click("#adapt-start")
        expect(page.locator("#adapt [role=alert]")).to_contain_text("broken.png")
        page.get_by_role("button", name="Remove Single files").click()
        page.set_input_files("#pick-files", [tmp_path / f"{index}.png" for index in range(3)])
        page.select_option(".group select", "-")
        page.click("#adapt-start")
        expect(page.locator(".result.kept")).to_contain_text("without", ignore_case=True)
    job = server.client.get(f"/deployments/{name}/jobs").json()["jobs"][0]
    assert (job["support"]["n"], job["support"]["unlabelled"]) == (0, 3)


def forecast(page: Page, row: str = "#forecast-dial") -> float:
    text = page.locator(f"{row} td").first.inner_text()
    return float(text.removesuffix("\u202f%")) / 100


def dialled(page: Page) -> list[float]:
    return page.locator("#dial input[type=number]").evaluate_all("all => all.map(one => one.valueAsNumber)")


def test_dial_keeps_the_sum_predicts_and_serves(
    browser: Browser, server: Server, name: str, labelled: Labelled
) -> None:
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        expect(page.locator("#dial")).to_contain_text("No predictions")
        job = adapted(server, name, labelled)
        page.reload()
        landscape = landscape_of(server.client, job["job"])
        page.wait_for_selector("#forecast-dial")
        exact = page.locator("#dial input[type=number]")
        exact.nth(2).fill("0.5")
        exact.nth(2).press("Enter")
        assert dialled(page) == [0.5, 0, 0.5, 0]
        page.get_by_label("Hold l2").check()
        page.locator("#dial-3").focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        assert dialled(page) == [0.4, 0, 0.5, 0.1]
        assert sum(dialled(page)) == pytest.approx(1, abs=1e-9)
        exact.nth(3).fill("7")
        exact.nth(3).press("Enter")
        assert dialled(page)[3] == 2
        assert sum(dialled(page)) == pytest.approx(1, abs=1e-9)
        page.get_by_label("Hold l2").uncheck()
        exact.nth(2).fill("1")
        exact.nth(2).press("Enter")
        page.get_by_role("button", name="Equal parts").click()
        assert dialled(page) == [0.25] * 4
        page.wait_for_function("() => document.querySelector('#dial p.hint').textContent.includes('quadratic')")
        exact.nth(2).fill("1")
        exact.nth(2).press("Enter")
        alone = next(point for point in landscape["points"] if point["coefficients"] == [0, 0, 1, 0])
        assert forecast(page) == pytest.approx(alone["accuracy"], abs=0.06)  # a fit, not the point itself
        page.click("#dial-serve")
        expect(page.locator("#dialog-body")).to_contain_text("unproven")
        agree(page)
        expect(page.locator("#summary")).to_contain_text("version 3")
        view = current(server, name)
        assert (view["version"], view["coefficients"]) == (3, {"linf": 0, "nominal": 0, "l2": 1, "l1": 0})
        answers = server.client.post(f"/predict?deployment={name}", files=as_parts(labelled.files)).json()
        assert [item["index"] for item in answers["predictions"]] == labelled.labels
        expect(page.locator("#dial-serve")).to_be_disabled()


def test_dial_says_so_when_somebody_else_was_first(browser: Browser, server: Server, name: str) -> None:
    fair = dict.fromkeys(NAMES, 0.25)
    with console(browser, server, at=f"#/{name}", refused={409}) as page:
        shown(page, name)
        page.locator("#dial input[type=number]").nth(2).fill("0.5")
        page.locator("#dial input[type=number]").nth(2).press("Enter")
        assert server.client.put(f"/deployments/{name}/soup", json={"coefficients": fair}).status_code == 200
        page.click("#dial-serve")
        agree(page)
        expect(page.locator("#dial [role=alert]")).to_contain_text("is at version 2, expected 1")
        assert current(server, name)["coefficients"] == fair
        assert dialled(page) == [0.5, 0, 0.5, 0]
        page.get_by_role("button", name="Go on from version 2").click()
        page.click("#dial-serve")
        agree(page)
        expect(page.locator("#summary")).to_contain_text("version 3")
        assert current(server, name)["coefficients"] == {"linf": 0.5, "nominal": 0, "l2": 0.5, "l1": 0}


def test_map_shows_the_search_and_sets_the_dial(
    browser: Browser, server: Server, name: str, labelled: Labelled
) -> None:
    job = adapted(server, name, labelled)
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        page.wait_for_selector("#map canvas")
        page.check("#map input[value=plain]")
        landscape = landscape_of(server.client, job["job"])
        plain = [point for point in landscape["points"] if point["kind"] == "plain"]
        expect(page.locator("#map circle.dot")).to_have_count(len(plain))
        page.click("#map summary")
        expect(page.locator("#map tbody tr")).to_have_count(len(plain))
        painted = "one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(value => value > 0)"
        assert page.locator("#map canvas").evaluate(painted)
        box = page.locator("#map .figure").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3)
        found = dialled(page)
        assert found[0] > 0.4  # towards the top corner, which is the first ingredient's
        assert min(found) >= 0
        page.locator("#map tbody button").first.click()
        best = min(plain, key=lambda point: point["temp_ce"])
        assert dialled(page) == pytest.approx(best["coefficients"], abs=1e-4)


def test_map_grows_when_the_search_is_completed(
    browser: Browser, server: Server, name: str, labelled: Labelled
) -> None:
    """The page may look at a landscape before the nodes that it lacks are there; it looks again."""
    job = adapted(server, name, labelled)
    points = landscape_of(server.client, job["job"])["points"]
    asked: list[int] = []

    def shortened(route: Route) -> None:
        answer = route.fetch()
        found = answer.json()
        if not asked:
            found["points"] = found["points"][:-2]
        asked.append(1)
        route.fulfill(response=answer, json=found)

    with console(browser, server) as page:
        shown(page, "default")
        page.route("**/landscape", shortened)
        page.evaluate("name => (location.hash = `#/${name}`)", name)
        shown(page, name)
        page.check("#map input[value=plain]")
        expect(page.locator("#map circle.dot")).to_have_count(sum(point["kind"] == "plain" for point in points))
        assert len(asked) > 1


def test_image_is_tried_on_two_versions_side_by_side(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    alone = {"linf": 0.0, "nominal": 0.0, "l2": 1.0, "l1": 0.0}
    server.client.put(f"/deployments/{name}/soup", json={"coefficients": alone})
    picture = tmp_path / "one.png"
    picture.write_bytes(labelled.files[5])
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        drop(page, "#trial .drop", picture)
        expect(page.locator("#trial .answer table")).to_have_count(2)
        assert page.locator("#trial select").evaluate_all("all => all.map(one => one.value)") == ["2", "1"]
        for side, version in enumerate((2, 1)):
            path = f"/deployments/{name}/soups/{version}/predict"
            first = server.client.post(path, files=as_parts([labelled.files[5]])).json()["predictions"][0]
            answer = page.locator("#trial .answer").nth(side)
            assert answer.locator("tbody th").all_inner_texts() == [item["label"] for item in first["top_k"]]
            expect(answer.locator(".verdict")).to_contain_text(f"{100 * first['confidence']:.1f}")
        page.select_option("#trial-left", "1")
        page.wait_for_function(
            "() => new Set([...document.querySelectorAll('#trial .verdict')].map(one => one.textContent)).size === 1"
        )


def test_deployment_is_made_found_and_deleted(browser: Browser, server: Server) -> None:
    for number in range(9):
        server.client.put(f"/deployments/shop-{number}", json={"base_set": "tiny"})
    try:
        with console(browser, server, refused={404, 422}) as page:
            shown(page, "default")
            expect(page.locator("#delete")).to_be_hidden()
            page.click(".make summary")
            page.fill("#make-name", "Not a name")
            page.click("#make button")
            expect(page.locator("#make [role=alert]")).to_contain_text("expected a name")
            page.fill("#make-name", "made-here")
            page.select_option("#make-base", "tiny-ln")
            page.click("#make button")
            shown(page, "made-here")
            assert current(server, "made-here")["base_set"] == "tiny-ln"
            page.fill("#filter", "shop-7")
            expect(page.locator("#deployments li")).to_have_count(1)
            page.fill("#filter", "")
            page.click("#delete")
            page.keyboard.press("Escape")
            assert current(server, "made-here")["version"] == 1
            page.click("#delete")
            agree(page)
            shown(page, "default")
            expect(page.locator("#deployments")).not_to_contain_text("made-here")
            assert server.client.get("/deployments/made-here").status_code == 404
            page.evaluate("() => (location.hash = '#/made-here')")
            expect(page.locator("#page-problem")).to_contain_text("there is no deployment")
            page.click("#page-problem a")
            shown(page, "default")
    finally:
        for number in range(9):
            server.client.delete(f"/deployments/shop-{number}")


def test_what_others_change_shows_up(browser: Browser, server: Server, name: str) -> None:
    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        server.client.put(f"/deployments/{name}/soup", json={"coefficients": dict.fromkeys(NAMES, 0.25)})
        expect(page.locator("#summary")).to_contain_text("version 2")
        assert dialled(page) == [0.25] * 4  # it was not touched, so it follows


def test_key_is_asked_for_sent_with_everything_and_kept_in_the_tab(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    """A gate before the real server lets requests pass that carry the key, as a server with keys does."""
    folder = write_folders(labelled, 0, 60, tmp_path / "shop")
    passed: list[str] = []

    def gate(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right-key":
            passed.append(route.request.url)
            return route.continue_()
        body = {
            "type": "about:blank",
            "title": "Unauthorized",
            "status": 401,
            "detail": "a key is needed",
            "errors": [],
        }
        return route.fulfill(
            status=401, headers={"WWW-Authenticate": "Bearer"}, content_type="application/problem+json", json=body
        )

    with console(browser, server, refused={401}) as page:
        page.context.route(re.compile(rf"{server.url}/(deployments|bases|jobs|adapt|predict)([/?]|$)"), gate)
        page.goto(f"{server.url}/ui#/{name}")
        page.reload()
        expect(page.locator("#key")).to_be_focused()
        expect(page.locator("#frame")).to_be_hidden()
        page.fill("#key", "wrong-key")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted")
        page.fill("#key", "right-key")
        page.keyboard.press("Enter")
        shown(page, name)
        expect(page.locator("#sign-in")).to_be_hidden()
        page.set_input_files("#pick-folder", folder)
        page.select_option("#promote", "never")
        page.click("#adapt-start")
        page.wait_for_selector(".result")
        assert any(url.endswith("/events") for url in passed)
        stores = page.evaluate("() => [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
        assert ["right-key" in store for store in stores] == [False, True, False]
        assert "right-key" not in page.content()
        page.reload()
        shown(page, name)
        page.click("#sign-out")
        expect(page.locator("#key")).to_be_visible()
        assert page.evaluate("() => sessionStorage.length") == 0


def test_broken_event_stream_is_taken_up_again(
    browser: Browser, server: Server, name: str, labelled: Labelled, tmp_path: Path
) -> None:
    broken: list[str] = []

    def break_once(route: Route) -> None:
        if broken:
            return route.continue_()
        broken.append(route.request.url)
        return route.fulfill(status=200, content_type="text/event-stream", body="event: progress\ndata: {")

    with console(browser, server, at=f"#/{name}") as page:
        shown(page, name)
        page.route("**/events", break_once)
        page.set_input_files("#pick-folder", write_folders(labelled, 0, 30, tmp_path / "shop"))
        page.click("#adapt-start")
        page.wait_for_selector(".result")
        assert broken


def test_server_that_is_away_is_said_and_waited_for(browser: Browser, server: Server, name: str) -> None:
    with console(browser, server, at=f"#/{name}", refused={503}) as page:
        shown(page, name)
        page.route(f"**/deployments/{name}", lambda route: route.fulfill(status=503, json={"detail": "not ready"}))
        expect(page.locator("#health")).to_contain_text("trying again")
        page.unroute(f"**/deployments/{name}")
        expect(page.locator("#health")).to_have_text("")


def test_fits_are_least_squares(browser: Browser, server: Server) -> None:
    generator = np.random.default_rng(0)
    fit = """async ([rows, values, probes]) => {
      const { fit } = await import('/ui/fit.js');
      const found = fit(rows, values);
      return found && { kind: found.kind, values: probes.map(found.predict) };
    }"""

    def terms(rows: np.ndarray, degree: int) -> np.ndarray:
        free = rows[:, :-1]
        first, second = np.triu_indices(free.shape[1])
        products = [free[:, first] * free[:, second]] if degree == 2 else []
        return np.concatenate([np.ones((len(rows), 1)), free, *products], axis=1)

    with console(browser, server) as page:
        for size, count, degree in ((4, 22, 2), (4, 7, 1), (2, 3, 2), (3, 30, 2)):
            rows = generator.dirichlet(np.ones(size), count)
            values, probes = generator.uniform(size=count), generator.dirichlet(np.ones(size), 5)
            found = page.evaluate(fit, [rows.tolist(), values.tolist(), probes.tolist()])
            weights = np.linalg.lstsq(terms(rows, degree), values, rcond=None)[0]
            assert found["kind"] == ("quadratic" if degree == 2 else "linear")
            np.testing.assert_allclose(found["values"], terms(probes, degree) @ weights, atol=1e-4)
        same = [[0.25, 0.75]] * 5
        assert page.evaluate(fit, [same, [0.5] * 5, same]) is None
        assert page.evaluate(fit, [[], [], []]) is None


def test_balance_holds_its_promises(browser: Browser, server: Server) -> None:
    """The sum is one, nothing is out of bounds, what is held stays, and what is set is met where it can be."""
    generator = np.random.default_rng(1)
    cases = []
    for _ in range(400):
        size = int(generator.integers(2, 7))
        values = generator.dirichlet(np.ones(size)) + generator.normal(0, 0.3, size)
        values += (1 - values.sum()) / size
        held = (generator.uniform(size=size) < 0.3).tolist()
        at = int(generator.integers(size))
        cases.append([values.clip(-2, 2).tolist(), held, at, float(generator.uniform(-2.5, 2.5))])
    run = """async (cases) => {
      const { rebalanced, whole, ONE } = await import('/ui/balance.js');
      return cases.map(([row, held, at, wanted]) => {
        const before = whole(row);
        return [before, rebalanced(before, held, at, wanted * ONE)];
      });
    }"""
    with console(browser, server) as page:
        for (_, held, at, wanted), (before, after) in zip(cases, page.evaluate(run, cases), strict=True):
            assert sum(after) == 10_000
            assert max(map(abs, after)) <= 20_000
            free = [i for i in range(len(after)) if i != at and not held[i]]
            assert all(after[i] == before[i] for i in range(len(after)) if i != at and i not in free)
            target = min(max(round(wanted * 10_000), -20_000), 20_000)
            if len(free) > 1:
                assert abs(after[at] - target) <= 1 or abs(sum(after[i] for i in free)) >= 19_999 * len(free)
            if not free:
                assert after == before
