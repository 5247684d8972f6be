import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from unetlib import (
    REPOSITORY,
    DataError,
    carvana,
    find_samples,
    load_mask,
    read_metadata,
    read_rles,
    rle_decode,
    rle_encode,
    split_by_group,
)
from unetlib.support.memory import fingerprint

# ---------------------------------------------------------------------------------- find_samples


def test_table_has_one_row_per_image(samples):
    assert list(samples.columns) == [
        "id",
        "group",
        "car",
        "angle",
        "image",
        "mask",
        "width",
        "height",
    ]
    assert (samples["group"] == samples["car"]).all()
    assert len(samples) == 6 * 4
    first = samples.iloc[0]
    assert (first["id"], first["car"], first["angle"]) == ("000000000000_01", "0" * 12, 1)
    assert (first["width"], first["height"]) == (60, 40)
    assert first["image"].endswith("000000000000_01.jpg")
    assert first["mask"].endswith("000000000000_01_mask.gif")


def test_the_lesson_lists_a_sound_data_set_alike(samples, data_set):
    pd.testing.assert_frame_equal(carvana.find_samples(data_set), samples)


def test_test_images_come_last_and_have_no_mask(samples):
    assert list(samples["mask"] == "") == [False] * 20 + [True] * 4
    assert samples["id"][:20].is_monotonic_increasing


def test_a_sound_data_set_has_no_problems_and_no_warnings(data_set):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_samples(data_set).attrs["problems"] == []


def test_default_folder_is_the_configured_one(data_set):
    assert find_samples()["image"][0].startswith(str(data_set))


@pytest.mark.fault("sixteen images without masks", "one warning that names ten and counts the rest")
def test_many_problems_are_counted_in_one_short_warning(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for number in range(1, 17):
        Image.new("L", (4, 4)).save(tmp_path / "train" / f"car_{number:02d}.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "test" / "other_01.jpg")
    with pytest.warns(UserWarning) as caught:
        samples = find_samples(tmp_path)
    (message,) = [str(one.message) for one in caught]
    assert message.count("\n") == 10
    assert "car_10.jpg" in message and "car_11.jpg" not in message
    assert len(samples.attrs["problems"]) == 16


def test_train_hq_stands_in_for_a_missing_train(own_data_set):
    (own_data_set / "train").rename(own_data_set / "train_hq")
    assert Path(find_samples(own_data_set)["image"][0]).parent.name == "train_hq"


def test_train_hq_is_ignored_beside_train(own_data_set):
    (own_data_set / "train_hq").mkdir()
    Image.new("L", (60, 40)).save(own_data_set / "train_hq" / "000000000000_01.jpg")
    samples = find_samples(own_data_set)
    assert len(samples) == 12
    assert {Path(image).parent.name for image in samples["image"]} == {"train", "test"}


def test_masks_saved_as_png_are_found(own_data_set):
    gif = own_data_set / "train_masks" / "000000000000_05_mask.gif"
    Image.fromarray(load_mask(gif)).convert("L").save(gif.with_suffix(".png"))
    gif.unlink()
    assert find_samples(own_data_set)["mask"][1].endswith("000000000000_05_mask.png")


@pytest.mark.fault("folder without one usable image", "said, with the first problem")
def test_a_folder_without_one_usable_image_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "car_01.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"car_01\.jpg"):
        find_samples(tmp_path)


# ------------------------------------------------------------------- find_samples for the next time


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that Pillow has opened so far; each file counts as long unchanged."""
    names = []
    really_open = Image.open

    def note_and_open(path, *arguments, **options):
        names.append(Path(path).name)
        return really_open(path, *arguments, **options)

    monkeypatch.setattr("PIL.Image.open", note_and_open)
    monkeypatch.setattr("unetlib.support.memory.time.time_ns", lambda: 2**63)
    return names


def test_each_mask_is_opened_once_and_a_second_call_opens_nothing(own_data_set, opened):
    first = find_samples(own_data_set)
    assert sorted(name for name in opened if name.endswith(".gif")) == sorted(
        path.name for path in (own_data_set / "train_masks").iterdir()
    )
    opened.clear()
    second = find_samples(own_data_set)
    assert not opened
    pd.testing.assert_frame_equal(first, second)


def test_only_what_has_changed_is_opened_again(own_data_set, opened):
    find_samples(own_data_set)
    opened.clear()
    Image.new("L", (60, 40)).save(own_data_set / "train_masks" / "000000000000_05_mask.gif")
    with pytest.warns(UserWarning, match=r"000000000000_05_mask\.gif"):
        samples = find_samples(own_data_set)
    assert {name[:15] for name in opened} == {"000000000000_05"}
    assert len(samples) == 12


def test_a_doubt_is_remembered_and_said_again(own_data_set, opened):
    Image.new("L", (60, 40)).save(own_data_set / "train_masks" / "000000000000_05_mask.gif")
    for _ in range(2):
        opened.clear()
        with pytest.warns(UserWarning, match=r"000000000000_05_mask\.gif"):
            samples = find_samples(own_data_set)
    assert not opened
    (problem,) = samples.attrs["problems"]
    assert problem.file.endswith("000000000000_05_mask.gif")


def test_an_unusable_file_is_looked_at_each_time(own_data_set, opened):
    (own_data_set / "train" / "000000000000_05.jpg").write_bytes(b"nothing")
    for _ in range(2):
        opened.clear()
        with pytest.warns(UserWarning, match=r"000000000000_05\.jpg"):
            assert len(find_samples(own_data_set)) == 11
    assert set(opened) == {"000000000000_05.jpg", "000000000000_05_mask.gif"}


def test_a_file_written_just_now_is_not_remembered(own_data_set):
    """Another change within the same tick of the clock might leave it the same times and size."""
    photo = own_data_set / "train" / "000000000000_05.jpg"
    find_samples(own_data_set)
    photo.write_bytes(bytes(photo.stat().st_size))
    with pytest.warns(UserWarning, match=r"000000000000_05\.jpg"):
        find_samples(own_data_set)


@pytest.mark.slow
def test_a_second_look_at_5088_pairs_takes_less_than_2_seconds(tmp_path):
    """Links to the embedded pairs, as many as the real set has."""
    pairs = find_samples(REPOSITORY / "data" / "sample")
    pairs = pairs[pairs["mask"] != ""]
    for folder in ("train", "train_masks"):
        (tmp_path / folder).mkdir()
    for number in range(5088):
        row = pairs.iloc[number % len(pairs)]
        name = f"{number // 16:012x}_{number % 16 + 1:02d}"
        (tmp_path / "train" / f"{name}.jpg").symlink_to(row["image"])
        (tmp_path / "train_masks" / f"{name}_mask.gif").symlink_to(row["mask"])
    first = find_samples(tmp_path)
    start = time.perf_counter()
    second = find_samples(tmp_path)
    assert time.perf_counter() - start < 2
    pd.testing.assert_frame_equal(first, second)
    assert len(second) == 5088


# ------------------------------------------------------------------------------------- load_mask


def save_palette_gif(mask, path):
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path.with_suffix(".gif"))
    return path.with_suffix(".gif")


def save_grey_png(mask, path):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def save_bilevel_png(mask, path):
    Image.fromarray(mask).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


@pytest.mark.parametrize("save", [save_palette_gif, save_grey_png, save_bilevel_png])
@pytest.mark.parametrize("fill", ["some", "none", "all"])
def test_masks_read_alike_however_they_are_stored(tmp_path, save, fill):
    mask = np.full((6, 8), fill == "all")
    if fill == "some":
        mask[2:4, 1:7] = True
    read = load_mask(save(mask, tmp_path / "mask"))
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask)


@pytest.mark.fault("mask of a single grey", "refused, with the remedy")
def test_a_mask_that_is_uniformly_grey_is_refused(tmp_path):
    Image.new("L", (4, 4), 128).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png"):
        load_mask(tmp_path / "grey.png")


# -------------------------------------------------------------------------------- split_by_group


def sample_table(cars: int, angles: int = 3) -> pd.DataFrame:
    rows = [
        (f"car{car}_{angle:02d}", f"car{car}", angle)
        for car in range(cars)
        for angle in range(1, angles + 1)
    ]
    table = pd.DataFrame(rows, columns=["id", "car", "angle"])
    return table.assign(
        group=table["car"], image=table["id"] + ".jpg", mask=table["id"] + "_mask.gif"
    )


fractions = st.floats(0.001, 0.999)
seeds = st.integers(0, 2**32 - 1)


@given(cars=st.integers(2, 40), fraction=fractions, seed=seeds)
def test_no_car_is_on_both_sides_and_none_is_lost(cars, fraction, seed):
    table = sample_table(cars)
    train, val = split_by_group(table, fraction, seed)
    assert not set(train["car"]) & set(val["car"])
    assert sorted([*train["id"], *val["id"]]) == sorted(table["id"])
    assert len(train) and len(val)


@given(cars=st.integers(2, 40), fraction=fractions)
def test_the_fraction_counts_cars(cars, fraction):
    _, val = split_by_group(sample_table(cars), fraction)
    assert val["car"].nunique() == np.clip(round(fraction * cars), 1, cars - 1)


@given(cars=st.integers(2, 20), seed=seeds)
def test_no_car_is_on_both_sides_after_the_metadata_join(cars, seed):
    """Two lines for one car double its rows; they must stay on one side."""
    names = [f"car{car}" for car in range(cars)]
    metadata = pd.DataFrame({"id": [*names, names[0]], "make": "Make"})
    table = sample_table(cars).merge(
        metadata, left_on="car", right_on="id", suffixes=("", "_car"), how="left"
    )
    train, val = split_by_group(table, 0.3, seed)
    assert not set(train["car"]) & set(val["car"])
    assert len(train) + len(val) == len(table)


@given(seed=seeds, order=st.permutations(range(12)))
def test_the_split_does_not_depend_on_the_order_of_the_rows(seed, order):
    table = sample_table(4)
    expected = set(split_by_group(table, 0.5, seed)[1]["car"])
    assert set(split_by_group(table.iloc[order], 0.5, seed)[1]["car"]) == expected


def test_the_split_is_the_same_on_every_machine_and_keeps_the_columns():
    table = sample_table(10)
    train, val = split_by_group(table, 0.3)
    assert set(val["car"]) == {"car2", "car4", "car6"}
    assert list(train.columns) == list(val.columns) == list(table.columns)


def test_another_seed_gives_another_split():
    table = sample_table(30)
    sides = {frozenset(split_by_group(table, 0.2, seed)[1]["car"]) for seed in range(5)}
    assert len(sides) == 5


def test_rows_without_a_mask_are_on_neither_side(samples):
    train, val = split_by_group(samples)
    assert (train["mask"] != "").all() and (val["mask"] != "").all()
    assert len(train) + len(val) == 20
    assert list(train.index) == list(range(len(train)))


@pytest.mark.fault("split with a fraction that is not between 0 and 1", "refused, with an example")
@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_of_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError):
        split_by_group(sample_table(3), fraction)


@pytest.mark.fault("one car only", "cannot be split: said")
def test_one_car_cannot_be_split():
    with pytest.raises(DataError):
        split_by_group(sample_table(1))


# ----------------------------------------------------------------------------------- csv files


def test_metadata_joins_to_every_sample(samples, data_set):
    metadata = read_metadata(data_set)
    joined = samples.merge(metadata, left_on="car", right_on="id", suffixes=("", "_car"))
    assert len(joined) == len(samples)
    assert joined.loc[joined["car"] == "0" * 11 + "3", "year"].eq(2003).all()


def test_an_id_of_digits_only_stays_text(data_set):
    assert read_metadata(data_set)["id"][0] == "000000000000"


def test_the_run_lengths_of_the_csv_are_those_of_the_masks(samples, data_set):
    rles = read_rles(data_set)
    labelled = samples[samples["mask"] != ""]
    assert set(rles.index) == set(labelled["id"])
    for row in labelled.itertuples():
        mask = load_mask(row.mask)
        np.testing.assert_array_equal(rle_decode(rles[row.id], row.height, row.width), mask)
        assert rle_encode(mask) == rles[row.id]


@pytest.mark.fault("code of an empty mask", "an empty text, no missing value")
def test_an_empty_run_length_code_is_not_a_missing_value(own_data_set):
    (own_data_set / "train_masks.csv").write_text("img,rle_mask\na_01.jpg,\n")
    assert read_rles(own_data_set)["a_01"] == ""


def test_a_code_of_any_length_is_read(own_data_set):
    """Python's csv module gives up at 131,072 characters unless it is told otherwise."""
    code = " ".join(f"{start} 1" for start in range(1, 200_000, 2))
    (own_data_set / "train_masks.csv").write_text(f"img,rle_mask\na_01.jpg,{code}\n")
    assert read_rles(own_data_set)["a_01"] == code


@pytest.mark.fault("csv file is missing", "skipped, with one line")
@pytest.mark.parametrize(
    ("read", "name"),
    [(read_metadata, "metadata.csv"), (read_rles, "train_masks.csv")],
)
def test_a_missing_csv_is_skipped_with_one_line(own_data_set, capsys, read, name):
    (own_data_set / name).unlink()
    assert read(own_data_set) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert name in line


# ------------------------------------------------------------------------------- run-length code

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def encode_pixel_by_pixel(mask) -> str:
    """Row by row, left to right: a run starts where a car pixel follows none."""
    height, width = mask.shape
    code, inside = [], False
    for number in range(height * width):
        if mask[number // width, number % width]:
            if inside:
                code[-1] += 1
            else:
                code += [number + 1, 1]
            inside = True
        else:
            inside = False
    return " ".join(str(one) for one in code)


def test_a_mask_by_hand():
    mask = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1]])
    assert rle_encode(mask) == "2 3 9 1"


def test_any_one_value_but_0_is_car():
    assert rle_encode(np.array([[0, 7, 7, 0]], np.uint8)) == "2 2"


@pytest.mark.fault("coverage, classes, or several masks as one", "refused")
@pytest.mark.parametrize(
    "mask",
    [[[0, 255, 7, 0]], [[0, 1, 2, 0]], [[0, -1, 0, 0]], [[[0, 1, 1]]], [0, 1, 1]],
    ids=["coverage", "classes", "negative", "(1, 1, 3)", "(3,)"],
)
def test_what_is_no_mask_of_two_values_has_no_run_lengths(mask):
    with pytest.raises(DataError):
        rle_encode(np.array(mask))


@pytest.mark.fault(
    "run-length code of probabilities", "refused: not every pixel above 0 is car; the remedy"
)
@pytest.mark.parametrize(
    "values",
    [[0.0, 0.2, 0.9], [0.0, np.nan, 1.0], [0.0, 255.0, 1.0], ["0", "1", "1"]],
    ids=["probabilities", "nan", "floats up to 255", "texts"],
)
def test_values_between_0_and_1_are_not_encoded(values):
    with pytest.raises(DataError):
        rle_encode(np.array([values]))


def test_floats_of_0_and_1_are_encoded():
    assert rle_encode(np.array([[0.0, 1.0, 1.0]])) == "2 2"


@given(masks)
def test_encoding_agrees_with_the_pixel_by_pixel_version(mask):
    assert rle_encode(mask) == encode_pixel_by_pixel(mask)


def test_runs_may_touch():
    assert rle_decode("1 2 3 1", 1, 4).tolist() == [[True, True, True, False]]


@given(masks)
def test_decoding_undoes_encoding(mask):
    decoded = rle_decode(rle_encode(mask), *mask.shape)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.fault("run-length code that is malformed", "refused, with the reason")
@pytest.mark.parametrize(
    "code",
    [
        "1",
        "1 2 3",
        "1 x",
        "1.5 2",
        "0 2",
        "-1 2",
        "1 0",
        "3 -1",
        "1 13",
        "12 2",
        "13 1",
        "1 3 2 1",
        "5 1 1 1",
        "0 1 5 1",
        "1 1 12 2",
        "1 1 3 3 4 1",
        "99999999999999999999 1",
        "1 9223372036854775807",
    ],
)
def test_malformed_codes_are_refused(code):
    with pytest.raises(DataError):
        rle_decode(code, 3, 4)


# ------------------------------------------------------------------------------ tables and names


@pytest.mark.fault("the sample table went through a csv file", "split and hashed like the first")
def test_a_table_from_a_csv_file_splits_and_hashes_alike(samples, tmp_path):
    samples.to_csv(tmp_path / "samples.csv", index=False)
    again = pd.read_csv(tmp_path / "samples.csv", dtype={"id": str, "car": str, "group": str})
    for first, second in zip(split_by_group(samples), split_by_group(again), strict=True):
        pd.testing.assert_frame_equal(first, second)
    assert fingerprint(again) == fingerprint(samples)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are text")
@pytest.mark.fault("a file's name is no valid UTF-8", "listed, remembered and hashed all the same")
def test_a_name_that_is_no_text_is_listed_and_hashed(own_data_set, opened):
    for name in ("train", "train_masks"):
        (own_data_set / name).rename(own_data_set / {"train": "images"}.get(name, "masks"))
    before = fingerprint(find_samples(own_data_set))
    for path in own_data_set.glob("*s/000000000000_01*"):
        path.rename(path.with_name(path.name.replace("0" * 12, os.fsdecode(b"caf\xe9"))))
    for _ in range(2):
        opened.clear()
        samples = find_samples(own_data_set)
    assert not opened and os.fsdecode(b"caf\xe9_01") in set(samples["id"])
    assert fingerprint(samples) != before
