"""A folder of images becomes masks or a submission: in order, whole, and nothing else replaced."""

import csv
import gzip
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from unetlib import (
    FILES,
    DataError,
    image_files,
    load_predictor,
    rle_decode,
    write_masks,
    write_submission,
)


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(data_set):
    return image_files(data_set / "test")


# ------------------------------------------------------------------------------------ which images


def test_folders_and_files_become_a_list_of_images(photos, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    for name in ("b.PNG", "a.jpg", ".hidden.jpg"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"notes\.txt"):
        found = image_files([tmp_path, photos[2]])
    assert found == [tmp_path / "a.jpg", tmp_path / "b.PNG", photos[2]]
    assert image_files(str(photos[0].parent)) == photos


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        image_files([tmp_path / "nowhere"])


def test_no_image_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"\.jpg"):
        image_files([tmp_path])


# --------------------------------------------------------------------------------------- results


def test_masks_are_written_as_black_and_white_files_of_the_original_size(
    predictor, photos, tmp_path
):
    assert write_masks(predictor, photos, tmp_path / "masks") == []
    assert names_in(tmp_path) == {"masks"}
    assert names_in(tmp_path / "masks") == {f"{image.stem}_mask.png" for image in photos}
    with Image.open(tmp_path / "masks" / f"{photos[0].stem}_mask.png") as opened:
        written = np.asarray(opened.convert("L"))
    np.testing.assert_array_equal(written, predictor.predict_mask(photos[0]) * 255)


def test_one_path_is_a_list_of_one(predictor, photos, tmp_path):
    assert write_masks(predictor, str(photos[0]), tmp_path / "masks") == []
    assert names_in(tmp_path / "masks") == {f"{photos[0].stem}_mask.png"}


@pytest.mark.parametrize("flip", [False, True])
def test_the_submission_decodes_to_the_predicted_masks(predictor, photos, tmp_path, flip):
    path = tmp_path / "sub" / "submission.csv"
    assert write_submission(predictor, photos, path, flip=flip) == []
    rows = rows_of(path)
    assert [row["img"] for row in rows] == [image.name for image in photos]
    for image, row in zip(photos, rows, strict=True):
        mask = rle_decode(row["rle_mask"], 40, 60)
        expected = predictor.predict_mask(image, flip=flip)
        assert (mask != expected).mean() < 0.002  # batches of one and of four round differently
        assert mask.any()
    assert names_in(path.parent) == {"submission.csv"}


@pytest.mark.fault("a picture that cannot be read among others", "listed; the rest is written")
def test_unreadable_images_are_listed_and_the_rest_is_written(predictor, photos, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "cut.jpg").write_bytes(photos[0].read_bytes()[:700])
    images = [tmp_path / "broken.jpg", *photos, tmp_path / "cut.jpg"]
    path = tmp_path / "out" / "submission.csv"
    problems = write_submission(predictor, images, path)
    assert [file for file, _ in problems] == [str(images[0]), str(images[-1])]
    assert [row["img"] for row in rows_of(path)] == [image.name for image in photos]
    listed = rows_of(path.with_name("submission.unreadable.csv"))
    assert [(row["file"], row["problem"]) for row in listed] == problems
    assert "broken.jpg" in capsys.readouterr().err

    write_submission(predictor, photos, path)  # all is well now: no stale list
    assert names_in(path.parent) == {"submission.csv"}


def test_a_packed_submission_holds_the_same_lines_and_is_the_same_file_each_time(
    predictor, photos, tmp_path
):
    for name in ("s.csv", "s.csv.gz", "S.CSV.GZ"):
        assert write_submission(predictor, photos, tmp_path / name) == []
    packed = (tmp_path / "s.csv.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "s.csv").read_bytes()
    assert packed == (tmp_path / "S.CSV.GZ").read_bytes()
    assert packed[4:8] == bytes(4)  # no time inside
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    write_submission(predictor, [*photos, tmp_path / "broken.jpg"], tmp_path / "s.csv.gz")
    assert (tmp_path / "s.csv.gz").read_bytes() == packed
    assert "broken.jpg" in (tmp_path / "s.csv.unreadable.csv").read_text()


def test_nothing_readable_is_an_error_and_leaves_nothing(predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        write_submission(predictor, [tmp_path / "broken.jpg"], tmp_path / "out" / "submission.csv")
    assert names_in(tmp_path / "out") == set()


# --------------------------------------------------------------------- what must not be replaced


def test_two_images_of_one_name_are_refused(predictor, photos, tmp_path):
    twin = shutil.copy(photos[0], tmp_path)
    with pytest.raises(DataError, match=photos[0].name):
        write_submission(predictor, [photos[0], twin], tmp_path / "s.csv")
    with Image.open(photos[0]) as opened:
        opened.save(tmp_path / f"{photos[0].stem}.png")
    with pytest.raises(DataError, match=f"{photos[0].stem}_mask.png"):
        write_masks(predictor, [photos[0], tmp_path / f"{photos[0].stem}.png"], tmp_path / "masks")


def test_masks_do_not_go_among_the_photos(predictor, photos):
    with pytest.raises(DataError, match=f"{photos[0].name}.*--output"):
        write_masks(predictor, photos, photos[0].parent)


@pytest.mark.fault("a picture's name given as output folder", "refused, with what is wanted")
@pytest.mark.parametrize("name", ["mask.png", "file"])
def test_the_masks_of_many_images_are_no_picture(predictor, photos, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"{name}.*--output a folder"):
        write_masks(predictor, photos, tmp_path / name)
    assert names_in(tmp_path) == {"file"}


@pytest.mark.fault("a file's name given as output folder", "refused, with what is wanted")
@pytest.mark.parametrize("name", ["submission.zip", "submission.txt", "s.csv.zip", "masks.webp"])
def test_a_new_folder_is_not_named_like_a_file(predictor, photos, tmp_path, name):
    for write in (write_masks, write_submission):
        with pytest.raises(DataError, match=rf"{name}.*\.csv"):
            write(predictor, photos, tmp_path / name)
    assert names_in(tmp_path) == set()
    (tmp_path / name).mkdir()
    assert write_masks(predictor, photos, tmp_path / name) == []


@pytest.mark.parametrize("name", ["masks.v2", "2026.01.05", "masks"])
def test_a_folder_may_have_a_dot_in_its_name(predictor, photos, tmp_path, name):
    assert write_masks(predictor, photos, tmp_path / name) == []
    assert len(names_in(tmp_path / name)) == len(photos)


@pytest.mark.fault("masks or a csv of a data set given as output", "refused, nothing is changed")
@pytest.mark.parametrize(
    "name", ["train_masks", "train_masks.csv", "metadata.csv", "link", "old", "old png"]
)
def test_the_truth_is_never_replaced(predictor, own_data_set, name):
    masks = own_data_set / "train_masks"
    (own_data_set / "link").symlink_to(masks)
    shutil.copytree(masks, own_data_set / "old")
    (own_data_set / "old png").mkdir()
    for mask in masks.iterdir():
        with Image.open(mask) as opened:
            opened.save(own_data_set / "old png" / f"{mask.stem}.png")
    before = contents(own_data_set)
    write = write_submission if name.endswith(".csv") else write_masks
    images = image_files(own_data_set / "train")
    if name == "old":  # the .gif files' names are taken by no mask of ours
        assert write(predictor, images, own_data_set / name) == []
        assert before.items() <= contents(own_data_set).items()
        return
    with pytest.raises(DataError, match=rf"{name}.*choose another --output"):
        write(predictor, images, own_data_set / name)
    assert contents(own_data_set) == before


@pytest.mark.fault("another program's csv file given as output", "refused, nothing is changed")
@pytest.mark.parametrize("foreign", ["out.csv", "out.unreadable.csv", "folder", "out.csv.gz"])
def test_a_csv_of_somebody_else_is_never_replaced(predictor, photos, tmp_path, foreign):
    if foreign == "folder":
        (tmp_path / "out.csv").mkdir()
    else:
        content = b"name,price\nhorse,3\n"
        packed = foreign.endswith(".gz")
        (tmp_path / foreign).write_bytes(gzip.compress(content) if packed else content)
    before, there = contents(tmp_path), names_in(tmp_path)
    with pytest.raises(DataError, match=r"out.*\.csv.*choose another --output"):
        output = foreign if foreign == "out.csv.gz" else "out.csv"
        write_submission(predictor, photos, tmp_path / output)
    assert contents(tmp_path) == before and names_in(tmp_path) == there


@pytest.mark.parametrize("name", ["masks", "submission.csv", "submission.csv.gz"])
def test_what_unetlib_wrote_is_written_anew(exported, predictor, photos, tmp_path, name):
    write = write_masks if name == "masks" else write_submission
    write(predictor, photos, tmp_path / name)
    first = contents(tmp_path)
    write(predictor, photos, tmp_path / name)
    assert contents(tmp_path) == first
    write(load_predictor(exported[0] / FILES["int8"]), photos, tmp_path / name)
    assert contents(tmp_path).keys() == first.keys() and contents(tmp_path) != first
    for file in first:  # as when the power fails
        file.write_bytes(bytes(500))
    write(predictor, photos, tmp_path / name)
    assert contents(tmp_path) == first


# ------------------------------------------------------------------------------------------- names


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
@pytest.mark.fault("a picture's name is not UTF-8", "a csv file lists it; its mask is written")
def test_a_name_that_is_not_utf8_stops_nothing(predictor, data_set, tmp_path, capsys):
    folder = shutil.copytree(data_set / "test", tmp_path / "photos")
    odd, broken = (folder / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"\xe9.jpg"))
    min(folder.iterdir()).rename(odd)
    broken.write_bytes(b"no image")
    images = image_files(folder)
    problems = dict(write_submission(predictor, images, tmp_path / "s.csv"))
    assert problems.keys() == {str(odd), str(broken)}
    assert "rename it" in problems[str(odd)]
    assert len(rows_of(tmp_path / "s.csv")) == 3
    listed = (tmp_path / "s.unreadable.csv").read_text(encoding="utf-8")
    assert r"caf\udce9.jpg" in listed and r"caf\udce9.jpg" in capsys.readouterr().err

    assert list(dict(write_masks(predictor, images, tmp_path / "masks"))) == [str(broken)]
    assert os.fsdecode(b"caf\xe9_mask.png") in names_in(tmp_path / "masks")
    assert r"\udce9.jpg" in (tmp_path / "masks" / "unreadable.csv").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on names alone")
@pytest.mark.fault("a name too long for its mask", "listed; the other masks are written")
def test_a_name_too_long_for_its_mask_is_listed(predictor, data_set, tmp_path):
    folder = shutil.copytree(data_set / "test", tmp_path / "photos")
    long = min(folder.iterdir()).rename(folder / f"{'x' * 250}.jpg")
    for _ in range(2):
        ((file, problem),) = write_masks(predictor, image_files(folder), tmp_path / "masks")
        assert file == str(long) and "rename it" in problem
        assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 3


@pytest.mark.fault("the disk is full while masks are written", "the system's own error; no result")
def test_a_full_disk_is_an_error_and_leaves_no_half_file(predictor, photos, own_disk):
    disk = own_disk("size=64k")
    (disk / "much").write_bytes(bytes(60 * 1024))
    with pytest.raises(OSError, match="space"):
        write_masks(predictor, photos, disk / "masks")
    assert not list((disk / "masks").glob("*_mask.png"))
