"""Images of another size."""

import numpy as np
from PIL import Image


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize [L, H, W, 3] uint8 to [L, size, size, 3]; images that are no squares are squeezed into one.

    A smaller image is the average over the area of every pixel, so nothing flickers as single pixels come and go; a
    larger one is interpolated bilinearly.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    shrinks = size <= min(height, width)
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), method)) for image in images])
