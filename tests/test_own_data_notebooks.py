"""The six notebooks on own pictures: small bright discs in folders as people have them.

Each folder's notebooks share a work folder, so that the baseline is trained once.
"""

import os

import course
import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_notebooks import NOTEBOOKS
from tqdm import tqdm

from unetlib import REPOSITORY, own_data

FOLDERS = {  # pictures, folders of images and masks, names, what ends a mask's, formats in turn
    "images and masks": (20, "images", "masks", "cell{:03d}", "", [".png"]),
    "a camera's names": (20, "train", "train_masks", "IMG_{:04d}", "", [".png"]),
    "wells of plates": (20, "train", "train_masks", "plate{1:02d}_{2}", "", [".png"]),
    "masks with an ending": (20, "images", "labels", "cell{:03d}", "_label", [".png"]),
    "mixed formats": (12, "train", "train_masks", "cell{:03d}_1", "", [".png", ".tif"]),
}


def write_discs(root, count, images, masks, names, ending, suffixes):
    """Grey pictures of 256x192 pixels, each with two to five discs, and their masks (0/255)."""
    rng = np.random.default_rng(0)
    for folder in (root / images, root / masks):
        folder.mkdir(parents=True)
    for i in range(count):
        name = names.format(i, i // 4, i % 4)
        grey, mask = Image.new("L", (256, 192), 60), Image.new("L", (256, 192))
        for _ in range(rng.integers(2, 6)):
            x, y, radius = rng.integers((20, 20, 5), (236, 172, 12)).tolist()
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(grey).ellipse(box, fill=int(rng.integers(130, 220)))
            ImageDraw.Draw(mask).ellipse(box, fill=255)
        noisy = np.asarray(grey) + rng.normal(0, 12, (192, 256))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(root / images / f"{name}{suffixes[i % len(suffixes)]}")
        mask.save(root / masks / f"{name}{ending}.png")


@pytest.fixture(scope="module", params=FOLDERS)
def work(request, tmp_path_factory):
    """(data set, work folder) of one kind of folder."""
    place = tmp_path_factory.mktemp("own pictures")
    write_discs(place / "data", *FOLDERS[request.param])
    return place / "data", place / "home"


def test_own_data_is_whatever_is_not_embedded(monkeypatch):
    assert own_data()
    monkeypatch.setenv("UNETLIB_DATA", os.path.relpath(REPOSITORY / "data" / "sample"))
    assert not own_data()
    monkeypatch.delenv("UNETLIB_DATA")
    assert not own_data()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_own_pictures(work, path, monkeypatch):
    for variable, value in zip(("UNETLIB_DATA", "UNETLIB_HOME"), work, strict=True):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    _, problem = course.execute(path, tqdm(disable=True))
    assert problem is None
