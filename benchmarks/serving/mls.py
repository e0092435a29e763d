"""The same network as an MLServer runtime with adaptive batching, as its documentation has it.

MLServer wants older releases of FastAPI and Starlette than the service runs on: it runs in an environment of its own.
"""

import asyncio
import os
from typing import Any

from mlserver import MLModel, MLServer, ModelSettings, Settings, types
from mlserver.codecs import Base64Codec, StringCodec

from benchmarks.serving.rivals import GRPC_PORT, MAX_BATCH, PORT, WORKERS, Network


class Runtime(MLModel):  # type: ignore[misc, unused-ignore]
    """Classifies files that come as base64."""

    async def load(self) -> bool:
        """Load the network."""
        self._network = Network()
        return True

    async def predict(self, payload: Any) -> Any:
        """Classify a batch; what several clients sent has been joined."""
        files = Base64Codec.decode_input(payload.inputs[0])
        answers = self._network.answer([self._network.decode(file) for file in files])
        texts = [answer.decode() for answer in answers]
        return types.InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("answers", texts)])


async def main() -> None:
    """Serve one model, ready where the others are."""
    settings = Settings(
        host="127.0.0.1",
        http_port=int(os.environ[PORT]),
        grpc_port=int(os.environ[GRPC_PORT]),
        metrics_endpoint=None,
        parallel_workers=int(os.environ[WORKERS]),
        debug=False,
        use_structured_logging=False,
    )
    model = ModelSettings(name="network", implementation=Runtime, max_batch_size=MAX_BATCH, max_batch_time=0.001)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
