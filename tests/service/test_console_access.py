"""The console for everybody: by keyboard, by screen reader, in both themes, on a small screen."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.conftest import Labelled, Server
from tests.service.console import console, current, shown, write_folders

pytestmark = pytest.mark.e2e

NAME = "access"
NEED_NAMES = {
    *("button", "link", "textbox", "searchbox", "combobox", "slider", "spinbutton", "checkbox", "radio"),
    *("image", "region", "progressbar", "dialog", "navigation"),
}
# Text against what lies behind it (WCAG 2.2, 1.4.3), swatches and bars against what they lie on (1.4.11).
CONTRAST = """() => {
  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      layers.push(parse(getComputedStyle(at).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    const isOff = node.closest(":disabled, [aria-disabled=true], option, noscript, script, title");
    if (!text || isOff || !node.checkVisibility() || node.closest(".hidden")) continue;
    const style = getComputedStyle(node);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 600);
    const background = behind(node.closest("svg")?.parentElement ?? node);
    const colour = over(parse(node.closest("svg") ? style.fill : style.color), background);
    found.push({ text: text.slice(0, 40), ratio: ratio(colour, background), least: isLarge ? 3 : 4.5 });
  }
  for (const node of document.querySelectorAll(".swatch, .bar, .line.zero")) {
    if (node.checkVisibility() && node.getBoundingClientRect().width > 0) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      found.push({ text: node.className, ratio: ratio(colour, behind(node.parentElement)), least: 3 });
    }
  }
  for (const node of document.querySelectorAll("input:not([type=range]), select, button")) {
    const hasNone = node.matches(":disabled, .hidden, .quiet, .primary, .solid, [type=checkbox]");
    if (node.checkVisibility() && !hasNone) {
      const value = ratio(parse(getComputedStyle(node).borderTopColor), behind(node.parentElement));
      found.push({ text: `border of ${node.id || node.textContent}`, ratio: value, least: 3 });
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def full(server: Server, labelled: Labelled) -> Iterator[str]:
    """A deployment with something to show everywhere: a promotion, a candidate, the dial, a search on the map."""
    client = server.client
    client.put(f"/deployments/{NAME}", json={"base_set": "tiny"})
    assert client.post(f"/adapt?deployment={NAME}&wait=50", **labelled.request(0, 100)).json()["state"] == "promoted"
    coefficients = {"linf": 0.5, "nominal": -0.25, "l2": 0.75, "l1": 0.0}
    assert client.put(f"/deployments/{NAME}/soup", json={"coefficients": coefficients}).status_code == 200
    assert client.post(f"/adapt?deployment={NAME}&promote=never", **labelled.request(100, 200)).status_code == 200
    yield NAME
    client.delete(f"/deployments/{NAME}")


def fill_up(page: Page, labelled: Labelled, folder: Path) -> None:
    """Bring the page into a state in which all of its parts are visible."""
    shown(page, NAME)
    page.wait_for_selector("#map canvas")
    page.click("#map summary")
    page.click(".make summary")
    page.click("#versions summary >> nth=0")
    shutil.rmtree(folder, ignore_errors=True)
    page.set_input_files("#pick-folder", write_folders(labelled, 200, 206, folder))
    page.set_input_files("#trial-file", next(folder.rglob("*.png")))
    page.click("#make button")  # an empty name: the browser says so, nothing is sent
    page.wait_for_selector("#trial .answer table")


def accessibility_tree(page: Page) -> list[dict[str, Any]]:
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [node for node in nodes if not node["ignored"]]


def test_everything_has_a_name_and_a_place(
    browser: Browser, server: Server, full: str, labelled: Labelled, tmp_path: Path
) -> None:
    with console(browser, server, at=f"#/{full}") as page:
        fill_up(page, labelled, tmp_path / "shop")
        nodes = accessibility_tree(page)
        roles = [node["role"]["value"] for node in nodes]
        assert {"banner", "navigation", "main", "region", "status", "slider", "table"} <= set(roles)
        nameless = [
            (node["role"]["value"], node.get("backendDOMNodeId"))
            for node in nodes
            if node["role"]["value"] in NEED_NAMES and not node.get("name", {}).get("value", "").strip()
        ]
        assert nameless == []
        sliders = {node["name"]["value"] for node in nodes if node["role"]["value"] == "slider"}
        assert sliders == {"linf", "nominal", "l2", "l1"}
        assert (
            page.evaluate(
                "() => { const all = [...document.querySelectorAll('[id]')].map((one) => one.id);"
                " return all.filter((id, at) => all.indexOf(id) !== at); }"
            )
            == []
        )
        levels = page.evaluate(
            "() => [...document.querySelectorAll('h1, h2, h3')].filter((one) => one.checkVisibility())"
            ".map((one) => Number(one.tagName[1]))"
        )
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.evaluate("() => document.documentElement.lang") == "en"
        assert "access" in page.title()
        headless = (
            "() => [...document.querySelectorAll('table')].filter((one) => !one.querySelector('th[scope]')).length"
        )
        assert page.evaluate(headless) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(
    browser: Browser, server: Server, full: str, labelled: Labelled, tmp_path: Path, scheme: str
) -> None:
    with console(browser, server, at=f"#/{full}", color_scheme=scheme) as page:
        fill_up(page, labelled, tmp_path / "shop")
        found = page.evaluate(CONTRAST)
        assert len(found) > 150
        assert [item for item in found if item["ratio"] < item["least"]] == []
        page.click("#versions tr:not(.current) button")
        assert [item for item in page.evaluate(CONTRAST) if item["ratio"] < item["least"]] == []
        page.keyboard.press("Escape")
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")


def test_theme_is_the_systems_until_one_is_chosen(browser: Browser, server: Server) -> None:
    with console(browser, server, color_scheme="dark") as page:
        shown(page, "default")
        background = "() => getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(background)
        expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")
        page.emulate_media(color_scheme="light")
        light = page.evaluate(background)
        assert light != dark
        page.click("#theme")
        assert page.evaluate(background) == dark
        page.reload()
        assert page.evaluate(background) == dark
        expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")


def tab_to(page: Page, selector: str, *, most: int = 150) -> None:
    """Press Tab until an element has the focus, and see that it shows."""
    for _ in range(most):
        page.keyboard.press("Tab")
        outlined = page.evaluate(
            "() => { const at = document.activeElement;"
            " const shows = (one) => one && getComputedStyle(one).outlineStyle !== 'none'"
            " && parseFloat(getComputedStyle(one).outlineWidth) >= 2;"
            " return at === document.body || shows(at) || shows(at.closest('.picker')?.querySelector('label')); }"
        )
        assert outlined, page.evaluate("() => document.activeElement.outerHTML")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def test_keyboard_is_enough(browser: Browser, server: Server, labelled: Labelled, tmp_path: Path) -> None:
    name = "by-keyboard"
    server.client.put(f"/deployments/{name}", json={"base_set": "tiny"})
    try:
        with console(browser, server, at=f"#/{name}") as page:
            shown(page, name)
            tab_to(page, ".skip")
            page.keyboard.press("Enter")
            expect(page.locator("#main")).to_be_focused()
            tab_to(page, "#dial-2")
            for _ in range(3):
                page.keyboard.press("ArrowRight")
            tab_to(page, "#dial-serve")
            page.keyboard.press("Enter")
            expect(page.locator("#dialog-no")).to_be_focused()
            tab_to(page, "#dialog-yes", most=2)
            page.keyboard.press("Enter")
            expect(page.locator("#summary")).to_contain_text("version 2")
            assert current(server, name)["coefficients"]["l2"] == 0.03
            expect(page.locator("#announcements")).to_contain_text("Version 2 is served")

            tab_to(page, "#pick-folder")
            page.locator(":focus").set_input_files(write_folders(labelled, 0, 100, tmp_path / "shop"))
            tab_to(page, "#promote")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
            tab_to(page, "#adapt-start")
            page.keyboard.press("Enter")
            page.wait_for_selector(".result.kept")
            tab_to(page, "[data-version='3'] button")
            page.keyboard.press("Enter")
            tab_to(page, "#dialog-yes", most=2)
            page.keyboard.press("Enter")
            expect(page.locator("#versions tr.current")).to_have_attribute("data-version", "3")
            tab_to(page, "[data-version='1'] button")
            page.keyboard.press("Enter")
            tab_to(page, "#dialog-yes", most=2)
            page.keyboard.press("Enter")
            expect(page.locator("#versions tr.current")).to_have_attribute("data-version", "1")
            assert current(server, name)["version"] == 1
    finally:
        server.client.delete(f"/deployments/{name}")


def test_focus_stays_where_it_is_while_the_page_keeps_up(browser: Browser, server: Server, full: str) -> None:
    with console(browser, server, at=f"#/{full}") as page:
        shown(page, full)
        page.focus("#dial-1")
        before = current(server, full)
        server.client.put(f"/deployments/{full}/soup", json={"version": 1})
        expect(page.locator("#summary")).to_contain_text("version 1")
        expect(page.locator("#dial-1")).to_be_focused()
        server.client.put(f"/deployments/{full}/soup", json={"version": before["version"]})


def test_small_screens_need_no_sideways_scrolling(
    browser: Browser, server: Server, full: str, labelled: Labelled, tmp_path: Path
) -> None:
    with console(browser, server, at=f"#/{full}", viewport={"width": 360, "height": 740}) as page:
        fill_up(page, labelled, tmp_path / "shop")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
        wide = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)"
        assert page.locator(".scroll").evaluate_all(wide) == []
        page.screenshot(path=tmp_path / "small.png", full_page=True)


def test_nothing_moves_for_those_who_asked_for_that(browser: Browser, server: Server, full: str) -> None:
    with console(browser, server, at=f"#/{full}", reduced_motion="reduce") as page:
        shown(page, full)
        moving = page.evaluate(
            "() => [...document.querySelectorAll('*')].filter((one) => { const style = getComputedStyle(one);"
            " return parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none'; }).length"
        )
        assert moving == 0
