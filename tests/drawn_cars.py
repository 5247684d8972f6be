"""A tiny data set in Carvana's layout, drawn: dark ellipses on a bright, noisy ground."""

from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 60, 40
ANGLES = (1, 5, 9, 13)  # every profile uses all four


def draw_car(car: int, angle: int) -> tuple[Image.Image, Image.Image]:
    """A dark ellipse off centre on a bright, noisy ground, and its mask (palette indices 0/1)."""
    rng = np.random.default_rng(100 * car + angle)
    left, top = 3 + 2 * car + angle // 3, 6 + car
    box = (left, top, left + 30 + car, top + 18 + angle // 4)
    mask = Image.new("P", (WIDTH, HEIGHT), 0)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    grey = np.where(np.asarray(mask) == 1, 50 + 8 * car, 200) + rng.normal(0, 6, (HEIGHT, WIDTH))
    image = np.stack([grey, grey * 0.97, grey * 0.94], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(image), mask


def run_lengths(mask: np.ndarray) -> str:
    code, position = [], 1
    for value, group in groupby(mask.ravel()):
        length = len(list(group))
        if value:
            code += [position, length]
        position += length
    return " ".join(map(str, code))


def write_data_set(root, cars: int = 5, test_cars: int = 1):
    """Write cars x 4 photos with masks, test photos, train_masks.csv and metadata.csv."""
    for folder in ("train", "train_masks", "test"):
        (root / folder).mkdir(parents=True)
    codes, makes = ["img,rle_mask"], ["id,year,make,model,trim1,trim2"]
    for car in range(cars + test_cars):
        name = f"{car:012x}"
        makes.append(f"{name},{2000 + car},Make {car},Model,Trim,Trim")
        for angle in ANGLES:
            image, mask = draw_car(car, angle)
            folder = "train" if car < cars else "test"
            image.save(root / folder / f"{name}_{angle:02d}.jpg", quality=95)
            if car < cars:
                mask.save(root / "train_masks" / f"{name}_{angle:02d}_mask.gif")
                codes.append(f"{name}_{angle:02d}.jpg,{run_lengths(np.asarray(mask))}")
    (root / "train_masks.csv").write_text("\n".join(codes) + "\n")
    (root / "metadata.csv").write_text("\n".join(makes) + "\n")
    return root
