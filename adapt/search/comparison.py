"""Two given soups on labelled images that neither was chosen on: is one better than the other?"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from adapt.documents.soup import Soup
from adapt.evidence.decision import too_little
from adapt.evidence.scores import Bools, Floats
from adapt.evidence.significance import LARGE, evidence, paired_p
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.network import Network
from training.devices import thread_count


class Comparison(NamedTuple):
    """How much better a soup is than the one that is served now."""

    n: int
    soup: float  # accuracy
    current: float  # accuracy
    p_value: float  # one-sided, of `the soup is no better than the current one`
    objection: str | None  # why the images prove nothing, for any p-value


def compare(
    network: Network, soup: Soup, current: Soup, images: Support, *, num_threads: int | None = None
) -> Comparison:
    """Compare two soups, each at its own temperature, by the evidence that adaptations are judged by.

    Nothing is chosen here, so the test is the plain paired one, without the allowance for choices that share images.

    Args:
        network: of the base set.
        soup: that may be better.
        current: the one to beat.
        images: that neither soup was chosen on.
        num_threads: CPU threads of torch; None leaves them as they are.
    """
    with thread_count(num_threads):
        (right, loss), (current_right, current_loss) = (_judge(network, one, images) for one in (soup, current))
    return Comparison(
        n=len(images),
        soup=float(right.mean()),
        current=float(current_right.mean()),
        p_value=paired_p(evidence(loss - current_loss, right, current_right)),
        objection=too_little(list(images.per_class.values())),
    )


def _judge(network: Network, soup: Soup, images: Support) -> tuple[Bools, Floats]:
    """Return whether a soup is right on each image, and its cross-entropy, (n,); one without finite logits is wrong."""
    logits, labels = served_logits(network, soup, images.images), torch.from_numpy(images.labels)
    usable = logits.isfinite().all(dim=1)
    losses = F.cross_entropy(logits / soup.temperature, labels, reduction="none")
    right = (logits.argmax(dim=1) == labels) & usable
    return right.numpy(), torch.where(usable, losses, LARGE).numpy()
