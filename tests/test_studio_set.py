"""The embedded data set, file by file: it is in Carvana's layout and says the same thing twice."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unetlib import (
    REPOSITORY,
    find_samples,
    load_image,
    load_mask,
    read_metadata,
    read_rles,
    rle_decode,
)

SAMPLE = REPOSITORY / "data" / "sample"
FULLSIZE = REPOSITORY / "data" / "fullsize"
ANGLES = list(range(1, 17))


def listed(folder) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_samples(folder)


@pytest.fixture(scope="module")
def embedded():
    return listed(SAMPLE)


@pytest.fixture(scope="module")
def fullsize():
    return listed(FULLSIZE)


@pytest.mark.parametrize(("folder", "cars"), [("train", 32), ("test", 8)])
def test_there_are_so_many_cars_of_16_angles_each(embedded, folder, cars):
    table = embedded[(embedded["mask"] != "") == (folder == "train")]
    angles = table.groupby("car")["angle"].apply(sorted)
    assert len(angles) == cars
    assert all(of_one_car == ANGLES for of_one_car in angles)


def test_every_file_is_usable(embedded):
    assert embedded.attrs["problems"] == []


def test_there_is_one_car_at_full_size(fullsize):
    assert fullsize["car"].nunique() == 1
    assert list(fullsize["angle"]) == ANGLES
    assert (fullsize["mask"] != "").all()


def test_no_car_is_in_two_places(embedded, fullsize):
    train = set(embedded.loc[embedded["mask"] != "", "car"])
    test = set(embedded.loc[embedded["mask"] == "", "car"])
    assert not train & test
    assert not (train | test) & set(fullsize["car"])


@pytest.mark.parametrize(("name", "size"), [("embedded", (480, 320)), ("fullsize", (1918, 1280))])
def test_all_pictures_of_a_set_have_one_size(request, name, size):
    table = request.getfixturevalue(name)
    assert set(zip(table["width"], table["height"], strict=True)) == {size}


@pytest.mark.parametrize("name", ["embedded", "fullsize"])
def test_names_are_12_hex_digits_and_a_two_digit_angle(request, name):
    for sample in request.getfixturevalue(name)["id"]:
        assert re.fullmatch(r"[0-9a-f]{12}_(0[1-9]|1[0-6])", sample)


@pytest.mark.parametrize("name", ["embedded", "fullsize"])
def test_photos_are_colour_jpegs_without_a_word_about_their_maker(request, name):
    for path in request.getfixturevalue(name)["image"]:
        with Image.open(path) as opened:
            assert (opened.format, opened.mode) == ("JPEG", "RGB"), path
            assert not opened.getexif(), path


@pytest.mark.parametrize("name", ["embedded", "fullsize"])
def test_masks_are_palette_gifs_of_the_indices_0_and_1(request, name):
    table = request.getfixturevalue(name)
    for path in table.loc[table["mask"] != "", "mask"]:
        with Image.open(path) as opened:
            assert (opened.format, opened.mode) == ("GIF", "P"), path
            assert {index for _, index in opened.getcolors()} == {0, 1}, path
        assert path.endswith("_mask.gif")


@pytest.mark.parametrize(("name", "folder"), [("embedded", SAMPLE), ("fullsize", FULLSIZE)])
def test_run_lengths_decode_to_every_mask_exactly(request, name, folder):
    table = request.getfixturevalue(name)
    table = table[table["mask"] != ""]
    rles = read_rles(folder)
    assert sorted(rles.index) == sorted(table["id"])
    for row in table.itertuples():
        decoded = rle_decode(rles[row.id], row.height, row.width)
        np.testing.assert_array_equal(decoded, load_mask(row.mask), err_msg=row.id)


def test_every_car_covers_a_plausible_part_of_the_picture():
    for sample, code in read_rles(SAMPLE).items():
        pixels = sum(map(int, code.split()[1::2]))
        assert 0.05 < pixels / (320 * 480) < 0.6, sample


def test_metadata_has_one_full_line_per_car(embedded):
    metadata = read_metadata(SAMPLE)
    assert list(metadata.columns) == ["id", "year", "make", "model", "trim1", "trim2"]
    assert metadata["id"].is_unique
    assert set(metadata["id"]) == set(embedded["car"])
    assert metadata[["year", "make", "model"]].notna().all(axis=None)


def test_no_two_photos_are_the_same(embedded):
    contents = {Path(path).read_bytes() for path in embedded["image"]}
    assert len(contents) == len(embedded)


def test_the_set_is_at_most_20_megabytes():
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6


def test_nothing_else_lies_in_the_folder():
    assert {path.name for path in SAMPLE.iterdir()} == {
        "train",
        "train_masks",
        "test",
        "train_masks.csv",
        "metadata.csv",
    }
    suffixes = {path.suffix for path in SAMPLE.rglob("*") if path.is_file()}
    assert suffixes == {".jpg", ".gif", ".csv"}


@pytest.mark.parametrize("size", [64, 128, 256])
def test_full_size_photos_decode_at_reduced_scale_to_the_same_grey(fullsize, size):
    for path in fullsize["image"][::4]:
        with Image.open(path) as opened:
            full = np.asarray(opened.convert("L").resize((size, size), Image.Resampling.BOX))
        assert np.abs(load_image(path, size).astype(float) - full).mean() < 0.5, path
