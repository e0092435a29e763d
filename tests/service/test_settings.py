"""Settings: what the environment says."""

from pathlib import Path

import pytest

from adapt.search.config import SearchConfig
from service.settings import Settings, SettingsError


def test_environment_overrides_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAUCIER_HOME", str(tmp_path))
    monkeypatch.setenv("SAUCIER_ALLOWED_HOSTS", "A.example, b.example,")
    monkeypatch.setenv("SAUCIER_MAX_UPLOAD_MB", "1.5")
    settings = Settings.load()
    assert settings.home == tmp_path
    assert settings.registry_url == f"sqlite:///{tmp_path / 'registry.db'}"
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.max_upload_bytes == 1_500_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0"),
        ("PROMOTE_P", "1.5"),
        ("HARM", "0"),
        ("HARM", "1"),
        ("HARM", "2 points"),
        ("DEVICE", "tpu"),
        ("PORT", "x"),
        ("PORT", "tcp://10.0.0.7:3000"),
        ("MAX_UPLOAD_MB", "-1"),
        ("JOB_RETENTION_DAYS", "0"),
        ("METRICS_KEY", "sometimes"),
        ("REGISTRY_MAX_AGE_SECONDS", "1"),
        ("DATABASE_CONNECTIONS", "1"),
        ("KEY_REQUESTS_PER_SECOND", "0"),
        ("PUBLIC_WITHOUT_KEYS", "perhaps"),
        ("DATABASE_URL", "mysql://host/name"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "somewhere"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SAUCIER_{name}", value)
    with pytest.raises(SettingsError, match=rf"^SAUCIER_{name}: [^\n]+$"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SAUCIER_WORKER", "SAUCIER_WORKERS"),
        ("SAUCIER_MAX_UPLOADS_MB", "SAUCIER_MAX_UPLOAD_MB"),
        ("SAUCIER_ALLOWED_HOST", "SAUCIER_ALLOWED_HOSTS"),
        ("SAUCIER_KEYS_FILE", "SAUCIER_API_KEYS_FILE"),
        ("saucier_worker", "SAUCIER_WORKERS"),
        ("SAUCIER_", "SAUCIER_"),
        ("SAUCIER_XYZZY", "SAUCIER_"),
    ],
)
def test_unknown_name_is_one_line_that_names_the_nearest(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=rf"^{name}: there is no such setting; the nearest is {nearest}\w*$"):
        Settings.load()


@pytest.mark.parametrize(
    "name",
    [
        "SAUCIER_TEST_CIFAR",
        "SAUCIER_SERVICE_HOST",
        "SAUCIER_SERVICE_PORT_HTTP",
        "SAUCIER_PORT_3000_TCP",
        "SAUCIER_PORT_3000_TCP_ADDR",
        "SAUCIER_ADAPTER_SERVICE_HOST",
        "SAUCIER_ADAPTER_PORT",
        "SAUCIERS",
    ],
)
def test_variables_of_others_are_passed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.7:3000")
    Settings.load()


def test_defaults_are_those_of_a_search() -> None:
    fields = SearchConfig.model_fields
    expected = (fields["false_promotions"].default, fields["harm"].default)
    assert (Settings().promote_p, Settings().harm) == expected
