"""Two versions on many labelled images in the console, against what the service answers."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.service.conftest import Labelled, Server, as_parts
from tests.service.console import console, drop, shown, write_folders

pytestmark = pytest.mark.e2e

NAME, COUNT = "compare", 70  # images: more than one request takes


def test_two_versions_are_compared_on_a_folder(
    browser: Browser, server: Server, labelled: Labelled, tmp_path: Path
) -> None:
    client, folder = server.client, write_folders(labelled, 0, COUNT, tmp_path / "shop")
    (folder / "notes.txt").write_text("no picture")
    client.put(f"/deployments/{NAME}", json={"base_set": "tiny"})
    fair = dict.fromkeys(("linf", "nominal", "l2", "l1"), 0.25)
    client.put(f"/deployments/{NAME}/soup", json={"coefficients": fair})
    labels = labelled.labels[:COUNT]
    names = labelled.class_names
    said = {}
    for version in (2, 1):
        path = f"/deployments/{NAME}/soups/{version}/predict"
        answers = client.post(path, files=as_parts(labelled.files[:COUNT])).json()["predictions"]
        said[version] = [item["index"] for item in answers]
    right = {version: [one == other for one, other in zip(said[version], labels, strict=True)] for version in said}
    try:
        with console(browser, server, at=f"#/{NAME}", refused={422}) as page:
            shown(page, NAME)
            drop(page, "#trial .drop", folder)
            result = page.locator("#trial-result")
            for version in said:
                share = f"{100 * sum(right[version]) / COUNT:.1f}\u202f%"
                expect(result.locator(".verdict")).to_contain_text(f"Version {version}: {share}")
            only = sum(one and not other for one, other in zip(right[2], right[1], strict=True))
            expect(result).to_contain_text(f"Right by version 2 alone: {only};")
            agreed = sum(one == other for one, other in zip(said[2], said[1], strict=True))
            expect(result).to_contain_text(f"The same answer to {agreed} of {COUNT}.")
            for index in set(labels):
                row = result.locator("[aria-label='Accuracy by class'] tbody tr", has_text=names[index])
                of_class = [at for at in range(COUNT) if labels[at] == index]
                expect(row).to_contain_text(f"({sum(right[2][at] for at in of_class)})")
            result.locator("summary").first.click()
            table = result.locator("table.confusion").first
            columns = table.locator("thead th").all_inner_texts()[1:]
            for line in table.locator("tbody tr").all_inner_texts():
                label, *counts = line.split("\t")
                found = dict(zip(columns, map(int, counts), strict=True))
                for name, count in found.items():
                    pair = (names.index(label), names.index(name))
                    assert count == list(zip(labels, said[2], strict=True)).count(pair)

            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
            (folder / "zebra").mkdir()
            (folder / "zebra" / "broken.png").write_bytes(b"nonsense")
            page.set_input_files("#trial-folder", folder)
            expect(page.locator("#trial [role=alert]")).to_contain_text("broken.png")
    finally:
        client.delete(f"/deployments/{NAME}")
