"""A camera between the world and the classifier: haze, defocus, exposure, sensor noise, JPEG."""

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

AIRLIGHT = 0.8  # grey of the light that haze scatters into the lens; 1 is white


@dataclass(frozen=True)
class Camera:
    """What happens to the light, in this order.

    Attributes:
        haze: share of the scene's light that stray light replaces, 0 to 1: contrast falls, black turns grey.
        defocus: radius of the blur disc in pixels, 0 or more.
        exposure: factor on the light that is left; below 1 the picture is too dark.
        noise: standard deviation of the sensor's read noise on the [0, 1] scale, independent per colour.
        quality: of the JPEG file, 1 to 95.
    """

    haze: float = 0.0
    defocus: float = 0.0
    exposure: float = 1.0
    noise: float = 0.0
    quality: int = 90

    def photograph(self, scenes: npt.NDArray[np.uint8], *, seed: int) -> list[bytes]:
        """Return a JPEG file of every scene.

        Args:
            scenes: uint8 RGB (N, H, W, 3).
            seed: of the noise.
        """
        light = scenes.astype(np.float64) / 255
        light = (1 - self.haze) * light + self.haze * AIRLIGHT
        light = ndimage.convolve(light, _disc(self.defocus)[None, :, :, None], mode="nearest") * self.exposure
        light += self.noise * np.random.default_rng(seed).standard_normal(light.shape)
        return [_jpeg(picture, self.quality) for picture in np.round(light.clip(0, 1) * 255).astype(np.uint8)]


# Fixed by hand, for all seeds alike. `dull-day` is the one the demo uses; the others stand beside it in EXPERIMENTS.md.
CAMERAS = {
    "clear": Camera(),
    "defocus": Camera(defocus=2.5),
    "noise": Camera(noise=0.3),
    "dim": Camera(exposure=0.5, defocus=1.2, noise=0.05),
    "dark": Camera(exposure=0.3, noise=0.1),
    "haze": Camera(haze=0.3, noise=0.05),
    "mild-day": Camera(haze=0.3, defocus=1.2, exposure=0.8, noise=0.05),
    "dull-day": Camera(haze=0.4, defocus=1.2, exposure=0.8, noise=0.05),
    "fog": Camera(haze=0.5, noise=0.05),
}
DEMO_CAMERA = "dull-day"


def _disc(radius: float) -> npt.NDArray[np.float64]:
    """Return the blur kernel of a lens out of focus: a disc, edge pixels weighted by the area they share."""
    reach, fine = math.ceil(radius), 10
    offsets = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = np.hypot(*np.meshgrid(offsets, offsets)) <= max(radius, 0.5)
    disc = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    return np.asarray(disc / disc.sum())


def _jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
