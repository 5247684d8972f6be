"""A data set -> a small part of it, at a smaller size, in the same layout."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from unetlib.fetch.samples import find_samples
from unetlib.fetch.tables import read_metadata
from unetlib.masks import load_coverage, rle_encode
from unetlib.pictures import DataError, load_image, sides


def write_subset(source, target, cars: int, size=(320, 480), seed: int = 0) -> Path:
    """Write a downsampled part of a data set in the same layout, into the folder it returns.

    Photos are reduced by area averaging; a mask pixel is car if at least half of its area was, and
    so is ``train_masks.csv``. A quarter as many test cars come along if there is a ``test/``.
    DataError: too few cars, a damaged photo, or a target that is in use or in the source.

    Args:
        source: a folder in Carvana's layout; it is only read.
        target: a new or empty folder; it appears when everything is written, not before.
        cars: how many cars with masks, drawn at random by the seed.
        size: ``(height, width)`` in pixels of every picture (ValueError: see ``pictures.sides``).
    """
    (height, width), source, target = sides(size), Path(source), Path(target).resolve()
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken or target == Path.cwd() or target.is_relative_to(source.resolve()):
        raise DataError(f"{target} is not empty, in use or inside the source: name a new folder.")
    samples = find_samples(source)
    has_mask = samples["mask"] != ""
    most = samples.loc[has_mask, "car"].nunique() if "car" in samples else 0
    if not 1 <= cars <= most:
        what = "cars with masks, named as 0123456789ab_01.jpg"
        raise DataError(f"{source} has {most} {what}: ask for 1 or more of them, not {cars}.")
    chosen = []
    for rows, count in ((samples[has_mask], cars), (samples[~has_mask], cars // 4)):
        chosen += [*np.random.default_rng(seed).permutation(sorted({*rows["car"]}))[:count]]
    rows = samples[samples["car"].isin(chosen)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        (folder / "train_masks").mkdir(parents=True)
        rles = []
        for row in tqdm(rows.itertuples(), "writing", len(rows)):
            photo = folder / ("train" if row.mask else "test") / f"{row.id}.jpg"
            photo.parent.mkdir(exist_ok=True)
            Image.fromarray(load_image(row.image, size, colour=True)).save(photo, quality=92)
            if row.mask:
                mask = load_coverage(row.mask, size) >= 128
                image = Image.fromarray(mask.astype(np.uint8))  # palette indices, as Carvana's are
                image.putpalette([0, 0, 0, 255, 255, 255])
                image.save(folder / "train_masks" / f"{row.id}_mask.gif", optimize=False)
                rles.append((photo.name, rle_encode(mask)))
        table = pd.DataFrame(rles, columns=["img", "rle_mask"])
        table.to_csv(folder / "train_masks.csv", index=False)
        if (metadata := read_metadata(source)) is not None:
            metadata[metadata["id"].isin(rows["car"])].to_csv(folder / "metadata.csv", index=False)
        if target.exists():
            target.rmdir()
        folder.replace(target)
    print(f"{target}: {len(rles)} photos with masks of {cars} cars at {width}x{height} pixels")
    return target
