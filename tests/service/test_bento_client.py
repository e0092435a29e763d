"""BentoML's own clients, against a running server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
from bentoml.exceptions import BentoMLException

from tests.service.conftest import Labelled, Server, as_parts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # BentoML's own, when it is imported
]


@pytest.fixture
def paths(labelled: Labelled, tmp_path: Path) -> list[Path]:
    """Two image files."""
    found = [tmp_path / f"{index}.png" for index in range(2)]
    for path, file in zip(found, labelled.files, strict=False):
        path.write_bytes(file)
    return found


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with bentoml.SyncHTTPClient(server.url) as client:
        yield client
    client._temp_dir.cleanup()  # which it leaves to the interpreter's end, and to its warning


def test_client_predicts_as_a_form_does(server: Server, client: Any, labelled: Labelled, paths: list[Path]) -> None:
    expected = server.client.post("/predict", files=as_parts(labelled.files[:2])).json()
    assert client.predict(images=paths) == client.predict(paths) == expected
    assert client.predict(images=paths[:1])["predictions"] == expected["predictions"][:1]


def test_client_without_blocking_predicts_too(server: Server, labelled: Labelled, paths: list[Path]) -> None:
    async def predict() -> object:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            answer = await client.predict(images=paths)
        client._temp_dir.cleanup()
        return answer

    assert asyncio.run(predict()) == server.client.post("/predict", files=as_parts(labelled.files[:2])).json()


def test_client_hears_what_is_wrong(client: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(BentoMLException, match=r"images\[0\]: expected an image file"):
        client.predict(images=[text])
    with pytest.raises(TypeError, match="Missing required arguments"):
        client.predict()
