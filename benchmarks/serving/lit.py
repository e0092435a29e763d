"""The same network as a LitServe API with dynamic batching, as its documentation has it."""

import base64
import os
from typing import Any

import litserve
from fastapi import Response

from benchmarks.serving.rivals import MAX_BATCH, PORT, WORKERS, Network


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """Decodes in the API process, runs batches in a worker."""

    def setup(self, device: str) -> None:
        """Load the network."""
        self.network = Network()

    def decode_request(self, request: dict[str, Any]) -> bytes:
        """Return the file; its pixels are decoded where the network is."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Return the inputs as they are."""
        return inputs

    def predict(self, files: list[bytes]) -> list[bytes]:
        """Classify."""
        return self.network.answer([self.network.decode(file) for file in files])

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Return the answers as they are."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Return an answer."""
        return Response(output, media_type="application/json")


def main() -> None:
    """Serve."""
    workers = int(os.environ[WORKERS])
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=workers, healthcheck_path="/readyz", fast_queue=True
    )
    server.run(host="127.0.0.1", port=int(os.environ[PORT]), num_api_servers=workers, generate_client_file=False)


if __name__ == "__main__":
    main()
