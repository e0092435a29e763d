"""From image files to confidences, for every route that takes pictures."""

from collections.abc import Sequence

from starlette.requests import Request

from service.http.answers import Probabilities, confidences
from service.http.context import Context
from service.http.decoding import INLINE_BYTES, decode_prepared
from service.http.inflight import Share, unless_gone
from service.prediction.loading import LoadedSoup
from training.images import Pixels


async def classify(
    context: Context, request: Request, loaded: LoadedSoup, files: Sequence[bytes]
) -> tuple[list[Pixels], Probabilities]:
    """Return the images at the network's input size and the confidences (B, K) of a soup.

    Where it may take a while, it ends when the client goes away.

    Raises:
        Problem: an image cannot be used, or others have too many: see `decode_prepared`.
        Busy: too many images wait for the network.
    """
    work = _classify(context, request.state.share, loaded, files)
    return await (work if sum(map(len, files)) <= INLINE_BYTES else unless_gone(request, work))


async def _classify(
    context: Context, share: Share, loaded: LoadedSoup, files: Sequence[bytes]
) -> tuple[list[Pixels], Probabilities]:
    images = await decode_prepared(files, loaded.base.manifest.input, context.settings, context.threads, share)
    return images, confidences(await loaded.batcher.submit(images), loaded.soup.temperature)
