"""A folder of images becomes masks or a submission: in order, whole, and nothing else replaced."""

import csv
import gzip
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageColor, ImageOps

from unetlib import (
    FILES,
    DataError,
    image_files,
    load_predictor,
    rle_decode,
    write_masks,
    write_submission,
)
from unetlib.plots import CAR


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
    for paths in ([], [tmp_path]):
        with pytest.raises(DataError):
            image_files(paths)


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


# ------------------------------------------------------------------------ overlays and cut-outs

BOTH = dict(overlay=True, cutout=True)


def pixels(path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


@pytest.mark.parametrize("wanted", [dict(overlay=True), dict(cutout=True), BOTH])
def test_what_is_asked_for_is_written_beside_the_mask(predictor, photos, tmp_path, wanted):
    assert write_masks(predictor, photos, tmp_path / "plain") == []
    assert write_masks(predictor, photos, tmp_path / "out", **wanted) == []
    assert names_in(tmp_path) == {"plain", "out"}
    kinds = {"mask", *wanted}
    assert names_in(tmp_path / "out") == {
        f"{one.stem}_{kind}.png" for one in photos for kind in kinds
    }
    for mask in (tmp_path / "plain").iterdir():
        assert (tmp_path / "out" / mask.name).read_bytes() == mask.read_bytes()


def test_an_overlay_tints_the_object_alone_and_a_cut_out_shows_it_alone(
    predictor, photos, tmp_path
):
    write_masks(predictor, photos[:1], tmp_path, **BOTH)
    picture, found = pixels(photos[0]), {}
    for kind in ("mask", "overlay", "cutout"):
        found[kind] = pixels(tmp_path / f"{photos[0].stem}_{kind}.png")
    mask, overlay, cutout = found["mask"] > 0, found["overlay"], found["cutout"]
    assert 0.1 < mask.mean() < 0.9
    assert overlay.shape == (40, 60, 3) and cutout.shape == (40, 60, 4)
    np.testing.assert_array_equal(overlay[~mask], picture[~mask])
    blue = np.array(ImageColor.getrgb(CAR))
    outline = (overlay == blue).all(axis=2)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1, "edge"), (3, 3))
    edge, inside, outside = mask & ~near.all((2, 3)), near.all((2, 3)), ~near.any((2, 3))
    np.testing.assert_array_equal(outline, edge)
    mixed = (blue * 115 + picture * 140) / 255
    assert np.abs(overlay - mixed)[inside].max() <= 1

    np.testing.assert_array_equal(cutout[..., :3], picture)
    alpha = cutout[..., 3]
    assert (alpha[inside] == 255).all() and (alpha[outside] == 0).all()
    soft = alpha[~inside & ~outside]
    assert ((soft > 0) & (soft < 255)).all()


def test_overlay_and_cut_out_are_upright_as_the_mask_is(predictor, photos, tmp_path):
    with Image.open(photos[0]) as opened:
        exif = opened.getexif()
        exif[ExifTags.Base.Orientation] = 6
        opened.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    write_masks(predictor, tmp_path / "turned.jpg", tmp_path / "out", **BOTH)
    with Image.open(tmp_path / "turned.jpg") as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened)).astype(int)
    assert seen.shape == (60, 40, 3)
    assert pixels(tmp_path / "out" / "turned_mask.png").shape == (60, 40)
    overlay, cutout = (pixels(tmp_path / "out" / f"turned_{one}.png") for one in BOTH)
    np.testing.assert_array_equal(cutout[..., :3], seen)
    assert overlay.shape == seen.shape and (overlay == seen).all(axis=2).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_kind_are_drawn_as_they_are_shown(predictor, photos, tmp_path, mode):
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    with Image.open(photos[0]) as opened:
        picture = opened.convert("L" if mode == "I;16" else mode)
    expected = picture.convert("RGB")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    picture.save(path)
    write_masks(predictor, path, tmp_path / "out", **BOTH)
    cutout = pixels(tmp_path / "out" / "picture_cutout.png")
    assert cutout.shape == (40, 60, 4)
    np.testing.assert_array_equal(cutout[..., :3], expected)
    assert pixels(tmp_path / "out" / "picture_overlay.png").shape == (40, 60, 3)


def test_an_empty_mask_is_drawn_too(predictor, tmp_path):
    Image.new("RGB", (30, 20), "white").save(tmp_path / "white.png")
    assert not predictor.predict_mask(tmp_path / "white.png").any()
    write_masks(predictor, tmp_path / "white.png", tmp_path / "out", **BOTH)
    assert (pixels(tmp_path / "out" / "white_overlay.png") == 255).all()
    assert (pixels(tmp_path / "out" / "white_cutout.png")[..., 3] == 0).all()


@pytest.mark.parametrize("size", [400, 560, 900_000], ids=["small", "usual", "huge"])
def test_a_colour_profile_is_kept_if_it_leaves_the_files_recognisable(
    predictor, photos, tmp_path, size
):
    profile = np.random.default_rng(0).bytes(size)  # not compressible
    with Image.open(photos[0]) as opened:
        opened.save(tmp_path / "p.png", icc_profile=profile)
        opened.convert("L").save(tmp_path / "grey.png", icc_profile=profile)
    images = [tmp_path / "p.png", tmp_path / "grey.png"]
    for _ in range(2):  # recognised as ours, and replaced
        assert write_masks(predictor, images, tmp_path / "out", **BOTH) == []
    for kind in BOTH:
        with Image.open(tmp_path / "out" / f"p_{kind}.png") as opened:
            assert opened.info.get("icc_profile") == (profile if size < 8_000 else None)
        with Image.open(tmp_path / "out" / f"grey_{kind}.png") as opened:
            assert "icc_profile" not in opened.info  # it would be of no colours


def test_images_named_as_overlays_keep_files_of_their_own(predictor, photos, tmp_path):
    names = ["x", "x_overlay", "x_mask", "x_cutout", "x_overlay_mask"]
    images = [shutil.copy(photos[0], tmp_path / f"{name}.jpg") for name in names]
    assert write_masks(predictor, images, tmp_path / "out", **BOTH) == []
    kinds = ("mask", "overlay", "cutout")
    assert names_in(tmp_path / "out") == {f"{name}_{kind}.png" for name in names for kind in kinds}


@pytest.mark.fault("an overlay's name is taken by another program's file", "refused, nothing lost")
@pytest.mark.parametrize("kind", ["overlay", "cutout"])
def test_only_own_overlays_and_cut_outs_are_replaced(predictor, photos, tmp_path, kind):
    write_masks(predictor, photos, tmp_path, **BOTH)
    first = contents(tmp_path)
    write_masks(predictor, photos, tmp_path, **BOTH)
    assert contents(tmp_path) == first
    write_masks(predictor, photos, tmp_path)  # the others stay: they show the same masks
    assert contents(tmp_path) == first
    predictor.threshold = 0.9
    write_masks(predictor, photos, tmp_path)  # they would show masks that are no more
    assert {name.name[-9:] for name in contents(tmp_path)} == {"_mask.png"}
    predictor.threshold = 0.5
    write_masks(predictor, photos, tmp_path, **BOTH)
    with Image.open(photos[0]) as opened:
        opened.save(tmp_path / f"{photos[0].stem}_{kind}.png")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=rf"{photos[0].stem}_{kind}\.png.*--output"):
        write_masks(predictor, photos, tmp_path, **BOTH)
    assert contents(tmp_path) == before
    assert write_masks(predictor, photos, tmp_path) == []  # its name is not asked for


def test_unreadable_images_have_no_overlay_either(predictor, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [tmp_path / "broken.jpg", *photos]
    ((file, _),) = write_masks(predictor, images, tmp_path / "out", **BOTH)
    assert file == str(tmp_path / "broken.jpg")
    assert len(names_in(tmp_path / "out")) == 3 * len(photos) + 1
    assert "unreadable.csv" in names_in(tmp_path / "out")


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
    long.rename(folder / f"{'x' * 245}.jpg")  # long enough for the mask alone
    for more, left in (({}, 0), (dict(cutout=True), 1), (BOTH, 1)):
        images, output = image_files(folder), tmp_path / f"masks {len(more)}"
        assert len(write_masks(predictor, images, output, **more)) == left
        assert len(list(output.glob("*_mask.png"))) == 4 - left


@pytest.mark.fault("the disk is full while masks are written", "the system's own error; no result")
def test_a_full_disk_is_an_error_and_leaves_no_half_file(predictor, photos, own_disk):
    disk = own_disk("size=64k")
    (disk / "much").write_bytes(bytes(60 * 1024))
    with pytest.raises(OSError, match="space"):
        write_masks(predictor, photos, disk / "masks")
    assert not list((disk / "masks").glob("*_mask.png"))
