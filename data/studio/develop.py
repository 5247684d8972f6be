"""From path-traced light to a photograph: vignette, exposure, blur, tone curve, noise."""

import numpy as np
from scipy.ndimage import gaussian_filter


def random_development(rng):
    """How the pictures of one car are developed."""
    return {
        "exposure": float(np.exp(rng.uniform(np.log(0.76), np.log(1.32)))),
        "tint": [float(1 + t) for t in rng.normal(0, 0.018, 3)],
        "vignette": float(rng.uniform(0.0, 0.12)),
        "contrast": float(rng.uniform(-0.2, 1.4)),
        "gamma": float(rng.uniform(0.9, 1.12)),
        "blur": float(rng.uniform(0.2, 0.6)),
        "noise": float(rng.uniform(0.002, 0.010)),
        "quality": int(rng.integers(84, 93)),
    }


def jitter_development(development, rng):
    """Exposure of one picture, a little off the car's."""
    changed = dict(development)
    changed["exposure"] = development["exposure"] * float(np.exp(rng.normal(0, 0.05)))
    return changed


def develop(light, development, rng):
    """Linear RGB (height, width, 3) -> 8-bit sRGB."""
    height, width = light.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    radius2 = ((columns - width / 2) ** 2 + (rows - height / 2) ** 2) / (width / 2) ** 2
    vignette = 1 - development["vignette"] * radius2
    x = light * vignette[..., None] * development["exposure"] * np.array(development["tint"])
    sigma = development["blur"] * (width / 480) ** 0.6
    x = gaussian_filter(x, (sigma, sigma, 0))
    # film shoulder: highlights roll off instead of clipping
    x = np.where(x > 0.7, 0.7 + 0.3 * (1 - np.exp(-(np.maximum(x, 0.7) - 0.7) / 0.3)), x)
    x = np.clip(x, 0, 1) ** development["gamma"]
    y = np.where(x < 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-6) ** (1 / 2.4) - 0.055)
    y = y - development["contrast"] * 0.05 * np.sin(2 * np.pi * y)
    y = y + rng.normal(0, development["noise"], (height, width, 1))
    y = y + rng.normal(0, 0.4 * development["noise"], (height, width, 3))
    return (np.clip(y, 0, 1) * 255 + 0.5).astype(np.uint8)
