"""The BentoML services and their wiring. Plain `bentoml serve` in the root of the repository starts both.

`Saucier` has the predictor processes that answer HTTP; `Adapter` is one process that only works on jobs. They meet in
the registry. Importing this module imports neither torch nor timm.
"""

import logging
import warnings
from typing import Any

import bentoml
import click
from _bentoml_impl.server.app import ServiceAppFactory  # type: ignore[import-untyped]
from _bentoml_sdk.service import Service  # type: ignore[import-untyped]
from bentoml._internal.configuration.containers import BentoMLContainer
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from deploy.layout import BundleError
from service.adapter.loop import AdapterLoop
from service.defaults import settle_default
from service.http.access import Access, is_loopback
from service.http.adaptation import Adaptation
from service.http.api import create_app
from service.http.connections import guard_connections
from service.http.context import Context
from service.http.decoding import Threads
from service.http.inflight import Inflight
from service.http.measuring import CLASSIFYING, Measured
from service.http.security import Gate
from service.layers import BENTOML_ROUTES, Direct, is_idle
from service.logs import set_up_logging
from service.metrics import Metrics
from service.prediction.catalog import Base, check_bundles, read_catalog
from service.prediction.predictor import Predictor
from service.runtimes import check_runtimes
from service.settings import Settings, SettingsError
from service.stopping import on_stop, refuse_connections_when_stopping
from service.store.database import Database, SchemaError
from service.store.identity import check_identity
from service.store.intake import Intake
from service.store.jobs import JobQueue
from service.store.keys import KeyRing, KeysError, read_keys
from service.store.objects import ObjectStore, StoreError
from service.store.references import References
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.transactions import Conflict
from service.store.watches import Watches
from service.tracing import check_tracing, traced
from service.weights import check_weights
from training.documents import one_line
from training.manifest import BaseSetError

_ONLY_READ = Response(
    status_code=405, headers={"Allow": "GET, HEAD"}
)  # to other methods, for which they have no answer


def _load_settings() -> Settings:
    try:
        return Settings.load()
    except SettingsError as error:
        raise SystemExit(f"saucier: {error}") from None


settings = _load_settings()  # BentoML wants the number of workers when the class is declared
app = create_app()


class QuietService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose HTTP surface is ours alone."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Return the app of one process.

        Of BentoML's routes only the probes stay: its start page loads scripts of third parties. Its time limit per
        request is left out, as it keeps a timer and a future alive for every request it has seen within the limit; the
        limits that are needed stand where bodies are read and jobs are waited for. So are its request metrics: they
        have a label for every path that anyone ever asks for.
        """
        _set_up_logging()
        self.inject_config()
        guard_connections(settings.head_timeout_seconds)
        factory = ServiceAppFactory(self, is_main=is_main)
        factory.timeout = None
        built: Starlette = factory()
        built.user_middleware[:] = [layer for layer in built.user_middleware if not is_idle(layer)]
        built.router.routes[:] = [
            *(route for route in built.router.routes if getattr(route, "path", None) in BENTOML_ROUTES),
            *(Route(path, _ONLY_READ) for path in BENTOML_ROUTES),
            *(Mount(path, mounted) for mounted, path, _ in self.mount_apps),
        ]
        hosts = frozenset({settings.host, *settings.allowed_hosts})
        ours = next((mounted for mounted, _, _ in self.mount_apps), built)  # the adapter has none
        gate = Gate(
            Direct(built, ours),
            allowed_hosts=hosts,
            on_refusal=_count,
            access=_access(),
            allow_cross_site_predict=settings.allow_cross_site_predict,
        )
        return traced(Measured(gate, _metrics))


def _access() -> Access | None:
    """Return what API keys allow, if there are to be any."""
    if settings.api_keys_file is None:
        return None
    return Access(
        KeyRing(settings.api_keys_file),
        requests_per_second=settings.key_requests_per_second,
        metrics_key=settings.metrics_key,
    )


def _metrics() -> Metrics | None:
    context: Context | None = getattr(app.state, "context", None)
    return None if context is None else context.metrics


def _count(problem: Any) -> None:
    if (metrics := _metrics()) is not None:
        metrics.reject(problem.reason, "")


# Requests are not traced or logged one by one, which would cost more than some take; BentoML's own configuration
# (BENTOML_CONFIG) can switch both on again.
_COMMON: dict[str, Any] = {
    "service_class": QuietService,
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
    "tracing": {"excluded_urls": ".*"},
    "runner_probe": {"enabled": False},  # predictors serve on while the adapter starts again
}


@bentoml.service(name="Adapter", workers=1, **_COMMON)
class Adapter:
    """Works on adaptation jobs."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    def start(self) -> None:
        """Start the loop in its thread."""
        database = Database(settings.registry_url, connections=settings.database_connections)
        self._loop = AdapterLoop(
            settings,
            read_catalog(*settings.bases_folders, check_files=False),
            Registry(database),
            JobQueue(database),
            Samples(database, ObjectStore(settings.samples_url)),
            References(database, ObjectStore(settings.samples_url)),
            Watches(database),
            Metrics(),
        )
        self._loop.start()
        on_stop(self._loop.put_back)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Wait for the loop to end."""
        self._loop.stop()


@bentoml.service(
    name="Saucier", workers=settings.workers, http={"host": settings.host, "port": settings.port}, **_COMMON
)
@bentoml.asgi_app(app)
class Saucier:
    """Classifies images with the current soup of each deployment."""

    adapter = bentoml.depends(Adapter)

    def __init__(self) -> None:
        database = Database(settings.registry_url, connections=settings.database_connections)
        registry, jobs, objects = Registry(database), JobQueue(database), ObjectStore(settings.samples_url)
        intake = Intake(database, objects, max_bytes=settings.max_sample_bytes, max_queued=settings.max_queued_jobs)
        catalog = read_catalog(*settings.bases_folders, check_files=False)
        metrics = Metrics()
        metrics.expect_requests(CLASSIFYING)
        predictor = Predictor(settings, catalog, registry, metrics)
        threads = Threads()
        adaptation = Adaptation(settings, registry, jobs, intake, predictor, threads)
        self._context = app.state.context = Context(
            settings=settings,
            catalog=catalog,
            registry=registry,
            jobs=jobs,
            samples=Samples(database, objects),
            references=References(database, objects),
            watches=Watches(database),
            metrics=metrics,
            predictor=predictor,
            adaptation=adaptation,
            threads=threads,
            uploads=Inflight(settings),
            others=Inflight(settings),
        )
        on_stop(adaptation.stop_waiting, drain_seconds=settings.drain_seconds)

    async def __is_ready__(self) -> bool:
        return self._context.is_ready

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def prepare() -> None:
        """Verify the base sets and make the registry ready, once, before any process is started.

        Raises:
            SystemExit: with one line that names the file and what was expected.
        """
        _set_up_logging()
        refuse_connections_when_stopping(settings.drain_seconds)
        try:
            check_tracing()
            check_runtimes()
            check_keys(_bound_host())
            catalog = read_catalog(*settings.bases_folders, check_files=True)
            check_bundles(catalog, settings.home)
            prepare_registry(catalog)
            prepare_store()
        except (BaseSetError, BundleError, Conflict, KeysError, SchemaError, SettingsError, StoreError) as error:
            raise SystemExit(f"saucier: {error}") from None
        except (SQLAlchemyError, OSError) as error:
            cause = " ".join(str(getattr(error, "orig", error)).split())
            place = settings.home if settings.database_url is None else "SAUCIER_DATABASE_URL"
            raise SystemExit(f"saucier: {place}: expected to make or open the registry there: {cause}") from None


def check_keys(host: str) -> None:
    """Check that the API keys can be read, or that the service may run without keys.

    Raises:
        KeysError: the file cannot be used.
        SettingsError: others than this machine would reach the service, and everybody could do everything.
    """
    if settings.api_keys_file is not None:
        read_keys(settings.api_keys_file)
    elif not is_loopback(host) and not settings.public_without_keys:
        problem = f"expected a file of API keys, as others than this machine reach {host}"
        advice = "SAUCIER_PUBLIC_WITHOUT_KEYS=true starts without and lets everybody do everything"
        raise SettingsError(f"SAUCIER_API_KEYS_FILE: {problem}; {advice}")


def _bound_host() -> str:
    """Return the address that is going to be bound: `bentoml serve --host` (or BENTOML_HOST) overrides the setting."""
    command = click.get_current_context(silent=True)
    given = None if command is None else command.params.get("host")
    return given or BentoMLContainer.http.host.get() or settings.host


def prepare_registry(catalog: dict[str, Base]) -> None:
    """Bring the schema up to date, settle the deployment `default`, look for deployments made for other weights.

    Raises:
        BaseSetError: the base set of `default` is not here, or it is not clear which one is meant.
        SchemaError: the database was made by a newer version, or by one that is too old.
    """
    from service.store.migrate import upgrade

    if settings.database_url is None:
        settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.registry_url)
    upgrade(database)
    settle_default(database, catalog, settings)
    check_weights(database, catalog, settings)
    database.close()


def prepare_store() -> None:
    """Make sure that labelled images can be kept, and see if the registry may delete those it wrote.

    Raises:
        StoreError: they cannot; names the setting.
    """
    try:
        ObjectStore(settings.samples_url).probe()
    except OSError as error:
        place = settings.samples_url if settings.store_url is None else "SAUCIER_STORE_URL"
        raise StoreError(f"{place}: expected to keep labelled images there: {one_line(error)}") from None
    database = Database(settings.registry_url)
    check_identity(database, is_shared=settings.store_url is not None)
    database.close()


def _set_up_logging() -> None:
    set_up_logging(settings.log_format)
    # What is wrong with an upload goes to its sender, not to the log.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
