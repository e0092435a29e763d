"""The floor: labelled images that somebody vouches for, on which a soup must stay good enough to be promoted.

The evidence of an adaptation is as honest as the labels it was given. Random mistakes make the test less sure; labels
that were chosen to mislead it can make a bad soup look good. Nothing in the labels themselves shows that, so the only
bound on the harm is a set that is not part of the upload.
"""

from typing import NamedTuple

from adapt.documents.soup import FloorCheck, Soup
from adapt.images.support import Reference
from adapt.networks.forward import served_logits
from adapt.networks.network import Network


class Bound(NamedTuple):
    """Whether a soup may be promoted as far as the reference says, and why not."""

    check: FloorCheck
    objection: str | None


def check_floor(network: Network, soup: Soup, reference: Reference) -> Bound:
    """Return the accuracy of a soup on the reference images, and an objection if it is below the floor.

    Raises:
        ValueError: images of another size or other classes than the base set's.
    """
    manifest, images = network.manifest, reference.images
    shape = (manifest.input.height, manifest.input.width, 3)
    if images.images.shape[1:] != shape or images.class_names != manifest.class_names:
        raise ValueError(
            f"reference: expected images {shape} of the classes {list(manifest.class_names)}, "
            f"got {images.images.shape[1:]} of {list(images.class_names)}: add the reference set again"
        )
    predicted = served_logits(network, soup, images.images).argmax(dim=1).numpy()
    accuracy = float((predicted == images.labels).mean())
    check = FloorCheck(n=len(images), accuracy=accuracy, floor=reference.floor)
    if accuracy >= reference.floor:
        return Bound(check, None)
    return Bound(
        check,
        f"accuracy {accuracy:.3f} on the {len(images)} reference images is below the floor of {reference.floor:g}",
    )
