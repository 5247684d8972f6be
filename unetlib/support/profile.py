"""How much of the course runs: everything, what a laptop can bear, or a smoke test."""

import os
from dataclasses import dataclass, replace

from unetlib.pictures import sides
from unetlib.recipe import PRETRAINED
from unetlib.support.folders import REPOSITORY, data_dir


@dataclass(frozen=True)
class Profile:
    """One of ``PROFILES``."""

    name: str
    description: str
    angle_step: int  # 4: trains on every fourth of the turntable's 16 angles
    max_size: int = 4096  # largest image side in pixels
    max_epochs: int = 1000  # most epochs of one run
    max_width: int = 4096  # most channels of the first level; the others shrink in proportion
    lr_factor: float = 1.0  # multiplies a constant learning rate; short runs need larger steps
    compare_size: int = 64  # image side in pixels at which notebooks compare two recipes

    def __str__(self) -> str:
        return f"profile: {self.name} ({self.description})"

    def scale(self, recipe):
        """The recipe as this profile runs it: ``ci`` shrinks it and raises a constant rate."""
        is_unet = recipe.network == "unet"
        free = is_unet and recipe.start_from != str(PRETRAINED)  # these weights have their widths
        narrow = min(1, self.max_width / recipe.widths[0]) if free else 1
        epochs = min(recipe.epochs, self.max_epochs)
        half = min(-(-recipe.half_size_epochs * epochs // recipe.epochs), epochs - 1)  # rounded up
        least = 2 ** len(recipe.widths) * (2 if half else 1)  # what a deep network needs
        step = (recipe.stride if is_unet else 32) * (2 if half else 1)  # own ones often need 32
        height, width = sides(recipe.size)
        small = min(1, max(self.max_size, least) / max(height, width))
        fit = [max(least, step, round(side * small / step) * step) for side in (height, width)]
        widths = tuple(max(1, round(width * narrow)) for width in recipe.widths)
        size = tuple(fit) if small < 1 else recipe.size
        lr = recipe.lr * (self.lr_factor if recipe.schedule == "constant" else 1)
        settings = dict(widths=widths, size=size, epochs=epochs, half_size_epochs=half, lr=lr)
        return replace(recipe, **settings)

    def thin(self, samples):
        """The rows of a sample table whose turntable angle this profile uses: 1 and every step on.
        Rows without an angle stay, and where none would be left, all do.
        """
        angle = samples.reindex(columns=["angle"])["angle"]
        used = ((angle - 1) % self.angle_step == 0) | angle.isna()
        return samples[used | (not used.any())].reset_index(drop=True)


PROFILES = {
    "ci": Profile("ci", "a smoke test: a narrow net at 64x64 for 3 epochs", 4, 64, 3, 8, 30.0),
    "laptop": Profile("laptop", "the real model at 128x128, every second training angle", 2),
    "full": Profile("full", "the real model at 128x128, every picture", 1),
}


def profile() -> Profile:
    """The profile named by ``UNETLIB_PROFILE`` (ValueError: unknown); ``laptop`` when unset."""
    name = os.environ.get("UNETLIB_PROFILE", "").strip() or "laptop"
    if name not in PROFILES:
        raise ValueError(f"UNETLIB_PROFILE={name} is unknown: use one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def own_data() -> bool:
    """Whether another data set than the embedded one is in use: less can be asserted of it."""
    return data_dir() != REPOSITORY / "data" / "sample"
