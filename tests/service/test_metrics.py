"""Metrics are documented, and what the dashboard and the alerts ask for exists."""

import json
import re
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.http.measuring import CLASSIFYING
from service.metrics import Metrics
from tests.service.prometheus import FOLDER, MISSING, ROOT, is_installed

RULES = FOLDER / "rules.yml"
RULE_TESTS = Path(__file__).with_name("rules_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "saucier.json"
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
OWN = re.compile(r"\bsaucier_\w+")
SELECTOR = re.compile(r"(saucier_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
OF_PROMETHEUS = {"instance", "job"}

needs_prometheus = pytest.mark.skipif(not is_installed(), reason=MISSING)


@cache
def defined() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every metric: its kind and labels."""
    made = vars(Metrics(CollectorRegistry())).values()
    found = {}
    for metric in made:
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            found[family.name] = (family.type, metric._labelnames)
    return found


def series() -> dict[str, set[str]]:
    """Every name that a query may use, with the labels it has."""
    return {
        f"{name}{suffix}": {*labels, *OF_PROMETHEUS, *(("le",) if suffix == "_bucket" else ())}
        for name, (kind, labels) in defined().items()
        for suffix in SUFFIXES[kind]
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Every query there is, and where."""
    found = [(f"alert {rule['alert']}", rule["expr"]) for rule in alerts()]
    found += [(f"panel {panel['title']}", target["expr"]) for panel in panels() for target in panel["targets"]]
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    return found + [(f"variable {one['name']}", one["definition"]) for one in variables if "definition" in one]


@pytest.mark.parametrize(("place", "expression"), expressions(), ids=[place for place, _ in expressions()])
def test_query_names_series_and_labels_that_exist(place: str, expression: str) -> None:
    known = series()
    named = set(OWN.findall(expression))
    assert named or expression == 'up{job="saucier"} == 0'
    assert named <= known.keys()
    for name, selector in SELECTOR.findall(expression):
        assert set(LABEL.findall(selector)) <= known[name], name
    for grouping in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= set.union(*(known[name] for name in named))


def test_dashboard_shows_every_metric() -> None:
    shown = " ".join(expression for place, expression in expressions() if place.startswith("panel"))
    assert [name for name in defined() if name not in shown] == []


def test_panels_lie_side_by_side_and_have_their_own_ids() -> None:
    found = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    cells = [
        (x, y)
        for panel in found
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_documents_name_metrics_that_exist() -> None:
    assert all(labels[0] in ("deployment", "route") for _, labels in defined().values())
    known = {*series(), *defined(), "saucier_resnet"}  # the last one is an architecture
    for document in DOCUMENTS:
        assert set(OWN.findall(document.read_text())) <= known, document


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tested = set(re.findall(r'alertname="(\w+)"', RULE_TESTS.read_text()))
    assert {rule["alert"] for rule in alerts()} == tested
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


@needs_prometheus
def test_rules_fire_when_they_should(tmp_path: Path) -> None:
    for path in (RULES, RULE_TESTS):
        shutil.copy(path, tmp_path)
    for command in (["check", "config", FOLDER / "prometheus.yml"], ["test", "rules", tmp_path / RULE_TESTS.name]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_series_that_alerts_watch_are_there_before_their_first_event() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.of("a")
    metrics.expect_requests(CLASSIFYING)
    there = {
        (sample.name, label)
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        for label in sample.labels.items()
    }
    for rule in alerts():
        for name, label, pattern in re.findall(r'(saucier_\w+)\{(\w+)=~?"([^"]*)"\}', rule["expr"]):
            assert {(name, (label, value)) for value in pattern.split("|")} <= there, rule["alert"]


def rendered(metrics: Metrics, deployments: set[str] | None) -> dict[tuple[str, str], float]:
    """What a scrape finds: the sample of each name and deployment that was set last."""
    return {
        (sample.name, sample.labels["deployment"]): sample.value
        for family in text_string_to_metric_families(metrics.render(deployments).decode())
        for sample in family.samples
    }


def test_series_of_deployments_that_are_gone_are_not_shown() -> None:
    metrics = Metrics(CollectorRegistry())
    for number in range(50):
        metrics.of(f"d{number}").images.inc()
        metrics.reject("invalid", f"d{number}")
    metrics.reject("host", "")
    found = rendered(metrics, {"d7", "never-asked"})
    assert {deployment for _, deployment in found} == {"d7", ""}
    assert found["saucier_predict_images_total", "d7"] == 1
    assert len({deployment for _, deployment in rendered(metrics, None)}) == 51


def test_ingredients_of_another_base_set_are_shown_as_zero() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.serve("a", 1, {"linf": 0.5, "l2": 0.5})
    metrics.serve("a", 2, {"linf": 0.25, "mine": 0.75})
    found = {
        sample.labels["ingredient"]: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == "saucier_soup_coefficient"
    }
    assert found == {"linf": 0.25, "l2": 0.0, "mine": 0.75}


def test_active_jobs_fall_back_to_zero_and_ends_are_there_from_the_start() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.expect({"a": 2, "b": 1})
    metrics.expect({"b": 3})
    metrics.expect({})
    metrics.expect({"a": 1})
    found = rendered(metrics, None)
    assert {name: found["saucier_adapt_active_jobs", name] for name in "ab"} == {"a": 1, "b": 0}
    assert found["saucier_adapt_jobs_total", "b"] == 0


def test_age_of_the_registry_grows_until_it_is_read() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.saw_registry()
    time.sleep(0.2)
    assert 0.2 <= rendered(metrics, None)["saucier_registry_age_seconds", "default"] < 5
    metrics.saw_registry()
    assert 0 <= rendered(metrics, {"default"})["saucier_registry_age_seconds", "default"] < 0.2
