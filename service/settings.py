"""Settings of the service: environment variables `SAUCIER_*`, read once at start-up; see docs/settings.md."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from adapt.evidence.levels import FALSE_PROMOTIONS
from training.documents import first_error

MetricsKey = Literal["auto", "always", "never"]
DATABASE_CONNECTIONS = 5  # of one process: 19 processes fit into the 100 that PostgreSQL allows by default
PACKAGE_ROOT = Path(__file__).resolve().parent.parent  # of the repository, the Bento, or the installed packages

PREFIX = "SAUCIER_"
# Not settings: folders of data that tests read, and what Kubernetes tells every container about a Service of our name.
_OTHERS = re.compile(rf"{PREFIX}(TEST_\w+|(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?))")


class SettingsError(ValueError):
    """A setting that cannot be used. One line that names the variable."""


class Settings(BaseSettings):
    """Every setting of the service; the variable is the field's name in capitals with `SAUCIER_` before it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    home: Path = Field(
        default=Path("~/.saucier"), description="folder for the registry, stored samples and serving bundles"
    )
    bases: Path | None = Field(
        default=None,
        description="folder with one base set per subfolder, or a single base set; by default `bases/` in the working "
        "directory, and those that come with Saucier whose names are not taken there",
    )
    base_set: str | None = Field(
        default=None,
        description="base set of the deployment `default`. By default what it serves already; at the first start the "
        "only base set of the first folder that has any, else `cifar10`",
    )
    database_url: str | None = Field(
        default=None,
        description="URL of the registry, `postgresql://` or `sqlite:///`; by default `registry.db` below the home",
    )
    rebase_at_start: bool = Field(
        default=False,
        description="at a start, move deployments to the new weights of their base set unless workers with other "
        "weights are alive; otherwise `saucier db rebase` does that",
    )
    database_connections: int = Field(
        default=DATABASE_CONNECTIONS,
        ge=2,
        description="most connections of one process to PostgreSQL; a machine has `SAUCIER_WORKERS` + 1 processes",
    )
    host: str = Field(default="127.0.0.1", description="address to bind (an IP address)")
    port: int = Field(default=3000, ge=1, le=65535, description="port to bind")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma-separated host names (without port) that requests may be addressed to, besides loopback; "
        "`*` allows any",
    )
    allow_cross_site_predict: bool = Field(
        default=False,
        description="let web pages of other sites send images to `/predict` and `/v2`, which count for the watch and "
        "the reservoir; browsers do not let them read the answers",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="what log lines are written as; `json` is one object per line"
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="file of the API keys, see `saucier keys`; by default no request needs a key",
    )
    public_without_keys: bool = Field(
        default=False,
        description="start on an address other than loopback without keys: every client may then use every route",
    )
    metrics_key: MetricsKey = Field(
        default="auto", description="whether `/metrics` needs a key, too; `auto`: except over loopback"
    )
    key_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        description="most requests per second of one key to one worker; by default any number",
    )
    workers: int = Field(default=2, ge=1, le=256, description="worker processes")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where networks run; `cuda` never falls back to the CPU"
    )
    threads: int | None = Field(
        default=None, ge=1, description="threads of the adapter's searches; by default all cores but one"
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="most images that run through the network at once")
    session_cache_mb: float = Field(
        default=512,
        gt=0,
        description="most memory of the sessions of one worker, in MB (1e6); that of `default` always stays",
    )
    max_images: int = Field(default=10_000, ge=1, description="most images in one request")
    max_image_pixels: int = Field(default=50_000_000, ge=1, description="most pixels of one image")
    max_request_pixels: int = Field(
        default=1_000_000_000, ge=1, description="most pixels of all images of one request together"
    )
    max_upload_mb: float = Field(default=64, gt=0, le=4096, description="most bytes of one request body, in MB (1e6)")
    upload_timeout_seconds: float = Field(
        default=60, gt=0, description="most seconds a client may take to send its request body"
    )
    head_timeout_seconds: float = Field(
        default=10, gt=0, description="most seconds a client may take to send the head of a request"
    )
    job_timeout_seconds: float = Field(
        default=3600, gt=0, description="most seconds that one adaptation may run; then it ends `failed`"
    )
    max_inflight_mb: float = Field(
        default=128,
        gt=0,
        description="most bytes of request bodies that one worker holds at once, in MB (1e6); adaptations "
        "and all other requests have this limit each",
    )
    max_inflight_pixels: int = Field(
        default=1_000_000_000,
        ge=1,
        description="most pixels that one worker has to decode at once; adaptations and all other "
        "requests have this limit each",
    )
    max_waiting_images: int = Field(
        default=1024, ge=1, description="most images that wait for one network of one worker"
    )
    drain_seconds: float = Field(
        default=2,
        ge=0,
        le=3600,
        description="how long workers take new connections after SIGTERM, while `/readyz` already answers 503",
    )
    max_queued_jobs: int = Field(
        default=100, ge=1, description="most adaptations that wait for the adapter, follow-ups not counted"
    )
    store_url: str | None = Field(
        default=None,
        description="where labelled images are kept: a folder, or `s3://bucket/folder`; by default `samples/` below "
        "the home",
    )
    max_samples_mb: float = Field(
        default=2048,
        gt=0,
        description="most bytes of the labelled images that one deployment keeps, in MB (1e6), at the network's input "
        "size; those not sent for longest make room",
    )
    sample_retention_days: float = Field(
        default=365, gt=0, description="age at which a labelled image is deleted, counted from when it was last sent"
    )
    job_retention_days: float = Field(
        default=90,
        gt=0,
        description="age at which a finished job is deleted, unless it made a version that is served",
    )
    history_retention_days: float | None = Field(
        default=None,
        gt=0,
        description="age at which events, and soup versions that nobody can roll back to, are deleted; by default "
        "never",
    )
    max_reservoir_mb: float = Field(
        default=256, gt=0, description="most bytes of the images that one deployment's reservoir keeps, in MB (1e6)"
    )
    promote_p: float = Field(
        default=FALSE_PROMOTIONS,
        gt=0,
        lt=1,
        description="chance of any false promotion while a version is current, over all adaptations together: the "
        "first one promotes with a one-sided p value below half of it, later ones below less. A watch that rolls back "
        "on labelled images uses the same levels",
    )
    harm: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="loss of accuracy, a fraction, that `promote=likely` risks with a chance of less than 5 %",
    )
    poll_seconds: float = Field(
        default=0.5, gt=0, le=60, description="how often a worker looks for a new soup when no job runs"
    )
    registry_max_age_seconds: float = Field(
        default=60,
        gt=0,
        description="age of a worker's last look at the registry from which on its `/readyz` answers 503; more than "
        "twice `SAUCIER_POLL_SECONDS`",
    )
    heartbeat_seconds: float = Field(
        default=1.0, gt=0, le=60, description="how often workers and the adapter report that they are alive"
    )
    stale_seconds: float = Field(
        default=6.0,
        gt=0,
        description="silence after which a worker counts as gone and a job goes back to the queue (once)",
    )

    _working_directory: Path = PrivateAttr(default_factory=lambda: Path.cwd().resolve())  # BentoML changes it later

    @field_validator("home", "bases", "api_keys_file", mode="after")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("port", mode="before")
    @classmethod
    def _refuse_link(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            advice = "set the port, or enableServiceLinks: false for the pod"
            raise ValueError(f"expected a number, got {value[:80]!r}, which Kubernetes sets for a Service: {advice}")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        expected = "expected a URL such as postgresql://user:password@host/name or sqlite:////folder/registry.db"
        try:
            url = make_url(value)
        except ArgumentError:  # its message is left out: the URL may hold a password
            raise ValueError(f"{expected}, got something else") from None
        if url.get_backend_name() not in ("postgresql", "sqlite"):
            raise ValueError(f"{expected}, got {url.get_backend_name()}://")
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ValueError(f"{expected}, got no file: several processes share the registry")
        return value

    @field_validator("registry_max_age_seconds", mode="after")
    @classmethod
    def _check_age(cls, value: float, info: ValidationInfo) -> float:
        if value <= 2 * info.data.get("poll_seconds", 0):
            raise ValueError(f"expected more than twice SAUCIER_POLL_SECONDS, got {value:g}")
        return value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @property
    def bases_folders(self) -> tuple[Path, ...]:
        """Where base sets are looked for; of two with one name the one in the earlier folder counts."""
        if self.bases is not None:
            return (self.bases,)
        return tuple(dict.fromkeys((self._working_directory / "bases", PACKAGE_ROOT / "bases")))

    @property
    def max_upload_bytes(self) -> int:
        """Most bytes of one request body."""
        return int(self.max_upload_mb * 1e6)

    @property
    def max_inflight_bytes(self) -> int:
        """Most bytes of request bodies that one worker holds at once."""
        return int(self.max_inflight_mb * 1e6)

    @property
    def session_cache_bytes(self) -> int:
        """Most memory of the sessions of one worker."""
        return int(self.session_cache_mb * 1e6)

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.database_url or f"sqlite:///{self.home / 'registry.db'}"

    @property
    def samples_url(self) -> str:
        """Where labelled images are kept, for fsspec."""
        return self.store_url or str(self.home / "samples")

    @property
    def max_sample_bytes(self) -> int:
        """Most bytes of the labelled images that one deployment keeps."""
        return int(self.max_samples_mb * 1e6)

    @property
    def reservoirs_path(self) -> Path:
        """Folder of the reservoirs of recent images."""
        return self.home / "reservoirs"

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: a variable has a value that cannot be used, or a name that no setting has; one line that
                names it.
        """
        cls._check_names()
        try:
            return cls()
        except ValidationError as error:
            name, _, problem = first_error(error).partition(": ")
            raise SettingsError(f"SAUCIER_{name.upper()}: {problem}") from None

    @classmethod
    def _check_names(cls) -> None:
        known = [f"{PREFIX}{name.upper()}" for name in cls.model_fields]
        for name in sorted(os.environ):
            upper = name.upper()  # as pydantic reads them
            if upper.startswith(PREFIX) and upper not in known and not _OTHERS.fullmatch(upper):
                (nearest,) = difflib.get_close_matches(upper, known, 1, cutoff=0)
                raise SettingsError(f"{name}: there is no such setting; the nearest is {nearest}")
