"""What the endpoints of one predictor process share, and how an endpoint is called."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.http.access import forbidden
from service.http.adaptation import Adaptation
from service.http.decoding import Threads
from service.http.inflight import Inflight, Share
from service.http.problems import FieldError, Problem, as_problem, render, unavailable
from service.http.roles import suffices
from service.http.uploads import discard_rest
from service.metrics import Metrics
from service.prediction.catalog import Base
from service.prediction.loading import LoadedSoup
from service.prediction.predictor import Predictor
from service.settings import Settings
from service.store.jobs import JobQueue
from service.store.keys import Role
from service.store.moves import Pointer
from service.store.references import References
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.watches import Watches
from training.nearest import meant

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Context:
    """The parts of one predictor process."""

    settings: Settings
    catalog: Mapping[str, Base]
    registry: Registry
    jobs: JobQueue
    samples: Samples
    references: References
    watches: Watches
    metrics: Metrics
    predictor: Predictor
    adaptation: Adaptation
    threads: Threads
    uploads: Inflight  # what adaptations hold
    others: Inflight  # what all other requests hold

    @property
    def is_ready(self) -> bool:
        """This process takes requests and every predictor of the machine has been ready: what probes ask for."""
        return self.predictor.are_all_ready and not self.adaptation.is_stopping

    async def loaded(self, request: Request, name: str, version: int | None = None) -> LoadedSoup:
        """Return what serves a deployment, and note that it exists, for the metrics.

        Args:
            request: the request.
            name: the deployment.
            version: one of its stored versions; None for the current one.

        Raises:
            UnknownDeployment, UnknownVersion: there is no such thing.
            NotReady, Outdated, Problem: it cannot serve, or not yet.
        """
        self._check_ready()
        loaded = await self.predictor.get(name, version)
        request.state.deployment = name
        return loaded

    async def pointer(self, request: Request, name: str) -> Pointer:
        """Return what a deployment points at, without a session of it, and note that it exists, for the metrics.

        Raises:
            UnknownDeployment: there is none of that name.
            NotReady, Problem: it cannot serve yet.
        """
        self._check_ready()
        pointer = await self.predictor.pointer(name)
        request.state.deployment = name
        return pointer

    def _check_ready(self) -> None:
        if self.predictor.is_ready or self.predictor.has_other_weights:
            return
        if self.predictor.is_loaded:
            raise unavailable("this process could not keep up with the registry, and is catching up")
        raise unavailable("the current soup is not loaded yet")


def caller(request: Request) -> str | None:
    """Return the name of the API key that a request came with, as the gate noted; None without keys."""
    return getattr(request.state, "caller", None)


def key_counts(request: Request) -> bool:
    """Say if the API key that a request came with was not revoked since; without keys, that is so."""
    counts: Callable[[], bool] | None = getattr(request.state, "key_counts", None)
    return counts is None or counts()


def require(request: Request, wanted: Role, what: str) -> None:
    """Refuse what needs a higher role than its route does; without keys everybody may.

    Raises:
        Problem: 403.
    """
    role: Role | None = getattr(request.state, "role", None)
    if role is not None and not suffices(role, wanted):
        raise forbidden(role, wanted, what)


Answer = Callable[[Context, Request], Awaitable[Response]]


class Endpoint:
    """ASGI app that answers the requests of a route with this process's context and renders whatever is raised.

    Args:
        answer: what answers.
        is_upload: bodies count towards the budget of adaptations, not towards that of other requests.
    """

    def __init__(self, answer: Answer, *, is_upload: bool = False) -> None:
        self._answer, self._is_upload = answer, is_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        response = await self._answer_or_refuse(request)
        await response(scope, receive, send)

    async def _answer_or_refuse(self, request: Request) -> Response:
        context: Context = request.app.state.context
        share = request.state.share = Share(context.uploads if self._is_upload else context.others)
        try:
            return await self._answer(context, request)
        except Exception as error:
            share.release()
            await discard_rest(request)
            return refuse(request, error)
        finally:
            share.release()


def endpoint(path: str, answer: Answer, methods: Sequence[str] = ("GET",), *, is_upload: bool = False) -> Route:
    """Return the route whose requests `answer` answers; see `Endpoint`."""
    return Route(path, Endpoint(answer, is_upload=is_upload), methods=methods, name=getattr(answer, "__name__", path))


def refuse(request: Request, error: Exception) -> Response:
    """Return the problem that stands for an exception, and count it."""
    problem = as_problem(error)
    context: Context = request.app.state.context
    context.metrics.reject(problem.reason, getattr(request.state, "deployment", ""))
    return render(problem, request.url.path)


def checked(model: type[Model], body: dict[str, Any]) -> Model:
    """Return a request body as a model.

    Raises:
        Problem: 422 with every field at fault.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        problems.sort(
            key=lambda problem: problem["type"] != "extra_forbidden"
        )  # misspelled, so that another is missing
        errors = [
            FieldError(".".join(map(str, problem["loc"]))[:200] or "body", _message(problem, model))
            for problem in problems
        ]
        raise Problem(422, f"{errors[0].field}: {errors[0].message}", errors) from None


def _message(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what is wrong with a field; of one that is unknown, which there are."""
    if problem["type"] != "extra_forbidden" or len(problem["loc"]) != 1:
        return problem["msg"].removeprefix("Value error, ")
    known = tuple(model.model_fields)
    return f"unknown field; expected {', '.join(known)}{meant(problem['loc'][0], known)}"


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a model as a JSON answer."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
