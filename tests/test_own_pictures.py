"""Pictures of any origin: other folders, names, formats and mask values than Carvana's."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unetlib import (
    CarvanaDataset,
    DataError,
    check,
    decode_once,
    find_samples,
    load_image,
    load_mask,
    split_by_group,
    write_subset,
)
from unetlib.pictures import image_size
from unetlib.support.memory import fingerprint
from unetlib.support.profile import PROFILES

PLAIN = ["id", "group", "image", "mask", "width", "height"]
OBJECT = np.zeros((12, 16), np.uint8)
OBJECT[3:9, 4:12] = 1


def write(root, names, images="images", masks="masks", ending="", suffix=".png", mask=OBJECT * 255):
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        colours = np.full((12, 16, 3), (200, 100 + number, 20), np.uint8)
        Image.fromarray(colours).save(root / images / f"{name}{suffix}")
        Image.fromarray(mask).save(root / masks / f"{name}{ending}.png")
    return root


FOLDERS = [("images", "masks"), ("images", "labels"), ("imgs", "masks"), ("train", "train_masks")]


@pytest.mark.parametrize("folders", FOLDERS)
@pytest.mark.parametrize("name", ["cell{}", "IMG_000{}", "plate1_{}"])
@pytest.mark.parametrize("ending", ["", "_mask", "-seg"])
def test_a_folder_of_any_names_is_read(tmp_path, folders, name, ending):
    root = write(tmp_path / "data", [name.format(i) for i in range(4)], *folders, ending=ending)
    with warnings.catch_warnings(action="error"):
        samples = find_samples(root)
    assert list(samples.columns) == PLAIN
    assert (samples["group"] == samples["id"]).all() and (samples["mask"] != "").all()
    assert check(root).empty
    train, val = split_by_group(samples, 0.25)
    assert (len(train), len(val)) == (3, 1)
    assert len(PROFILES["ci"].thin(train)) == 3
    assert CarvanaDataset(train, 8)[0][1].any()
    with pytest.raises(DataError, match="cars"):
        write_subset(root, tmp_path / "subset", 1)


@pytest.mark.parametrize("suffixes", [[".tif"], [".png", ".tif"], [".jfif", ".gif", ".jp2"]])
def test_every_format_that_pillow_reads_is_found(tmp_path, suffixes):
    for number, suffix in enumerate(suffixes):
        names = [f"cell{number}_{i}" for i in (1, 2)]
        write(tmp_path, names, "train", "train_masks", suffix=suffix)
    with warnings.catch_warnings(action="error"):
        samples = find_samples(tmp_path)
    assert len(samples) == len(decode_once(samples, 8)) == 2 * len(suffixes)


@pytest.mark.fault("masks of several kinds in one set", "kept, and the fewer ones are counted")
@pytest.mark.parametrize(
    ("usual", "other"),
    [(OBJECT, OBJECT * 255), (OBJECT, OBJECT * 2), (OBJECT * 255, OBJECT[..., None] * [0, 200, 0])],
    ids=["0/1 and 0/255", "0/1 and 0/2", "two colours"],
)
def test_masks_of_several_kinds_are_doubtful(tmp_path, usual, other):
    write(tmp_path, ["a", "b", "c"], mask=usual)
    write(tmp_path, ["x", "y"], mask=other.astype(np.uint8))
    for _ in range(2):  # found, then remembered
        with pytest.warns(UserWarning, match=r"x\.png.*2 masks.*3 "):
            samples = find_samples(tmp_path)
        assert len(samples) == 5 and all(load_mask(one).any() for one in samples["mask"])
    assert check(tmp_path)["file"].to_list() == ["masks/x.png"]


@pytest.mark.fault("classes of one grey in a colour mask", "refused")
def test_colours_of_one_grey_are_no_two_valued_mask(tmp_path):
    colours = np.zeros((12, 16, 3), np.uint8)
    colours[:4], colours[8:] = (255, 0, 0), (0, 130, 0)  # both are 76 in grey
    Image.fromarray(colours).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png"):
        load_mask(tmp_path / "mask.png")


@pytest.mark.fault("a mask whose ground is transparent", "refused")
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("grey", [0, 255])
def test_a_mask_with_transparent_parts_is_refused(tmp_path, mode, grey):
    layers = [np.where(OBJECT, grey, 255).astype(np.uint8)] * 3
    Image.fromarray(np.dstack([*layers, OBJECT * 255])).convert(mode).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png.*transparent"):
        load_mask(tmp_path / "mask.png")
    opaque = np.dstack([np.uint8(OBJECT * 255)] * 3 + [np.full_like(OBJECT, 255)])
    Image.fromarray(opaque).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png"), OBJECT == 1)


@pytest.mark.parametrize(("tag", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("suffix", [".png", ".tif", "compressed.tif"])
def test_pictures_and_masks_are_seen_upright(tmp_path, tag, turn, suffix):
    path = tmp_path / f"picture{suffix}"
    how = dict(compression="tiff_lzw") if suffix == "compressed.tif" else {}
    exif = Image.Exif()
    exif[0x0112] = tag
    how |= dict(tiffinfo={274: tag}) if path.suffix == ".tif" else dict(exif=exif)
    stored = OBJECT.copy()
    stored[4, 4:8] = 0
    Image.fromarray(stored * 255).save(path, **how)
    if suffix == ".tif" and tag > 4:
        with pytest.raises(DataError, match=r"picture\.tif.*side"):
            load_image(path, (16, 12))
        with pytest.raises(DataError, match=r"picture\.tif.*side"):
            load_mask(path)
        return
    seen = np.rot90(stored, turn)
    assert image_size(path) == seen.shape
    np.testing.assert_array_equal(load_image(path, seen.shape), seen * 255)
    np.testing.assert_array_equal(load_mask(path), seen == 1)


@pytest.mark.fault("a picture of several pages", "left out, and named")
@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp"])
def test_several_pages_are_no_picture(tmp_path, suffix):
    write(tmp_path, ["a", "b"])
    pages = [Image.fromarray(np.full((12, 16), grey, np.uint8)) for grey in (0, 90)]
    path = tmp_path / "images" / f"c{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    Image.fromarray(OBJECT).save(tmp_path / "masks" / "c.png")
    with pytest.raises(DataError, match=rf"c\{suffix}.*2 "):
        load_image(path, 8)
    with pytest.warns(UserWarning, match=rf"c\{suffix}"):
        assert list(find_samples(tmp_path)["id"]) == ["a", "b"]


@pytest.mark.fault("12 bits in a file of 16", "kept, and named as nearly black")
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_greys_of_fewer_bits_than_their_file_are_doubtful(tmp_path, bits):
    write(tmp_path, ["a", "b"])
    ramp = np.linspace(0, 2**bits - 1, 12 * 16).reshape(12, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "images" / "a.png")
    expected = [] if bits == 16 else ["images/a.png"]
    assert check(tmp_path)["file"].to_list() == expected
    for source in (tmp_path / "images" / "a.png", ramp):
        with warnings.catch_warnings(record=True, action="always") as shown:
            grey = load_image(source, (12, 16))
        assert len(shown) == len(expected) and grey.max() == round((2**bits - 1) / 257)


@pytest.mark.fault("greys beyond 16 bits", "left out, and named")
def test_a_picture_whose_white_cannot_be_told_is_left_out(tmp_path):
    write(tmp_path, ["a", "b"], suffix=".tif")
    Image.fromarray(np.full((12, 16), 70_000, np.int32)).save(tmp_path / "images" / "a.tif")
    with pytest.warns(UserWarning, match=r"a\.tif.*70"):
        assert list(find_samples(tmp_path)["id"]) == ["b"]


@pytest.mark.fault("a cut-out with hidden pixels", "read on white, as it is shown")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    grey = np.full((12, 16), 60, np.uint8)
    picture = Image.fromarray(np.dstack([grey, grey, grey, OBJECT * 255]))
    picture.convert(mode).save(tmp_path / "cut.png")
    if mode == "P":
        indices = Image.fromarray(OBJECT)
        indices.putpalette([0, 0, 0, 60, 60, 60])
        indices.save(tmp_path / "cut.png", transparency=0)
    for source in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png"), np.asarray(picture)):
        np.testing.assert_array_equal(load_image(source, (12, 16)), np.where(OBJECT, 60, 255))
        colour = load_image(source, (12, 16), colour=True)
        np.testing.assert_array_equal(colour[..., 2], np.where(OBJECT, 60, 255))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
def test_folders_and_patterns_of_any_format(tmp_path, suffix):
    write(tmp_path, ["a", "b"], "photos", "labels", suffix=suffix)
    by_folder = find_samples(images=tmp_path / "photos", masks=tmp_path / "labels")
    by_pattern = find_samples(
        images=f"{tmp_path}/photos/*{suffix}", masks=str(tmp_path / "l*" / "*.png")
    )
    pd.testing.assert_frame_equal(by_folder, by_pattern)
    assert list(by_folder["id"]) == ["a", "b"]


def test_a_pattern_goes_into_folders_and_leaves_masks_out_of_the_images(tmp_path):
    write(tmp_path, ["a", "b"], "scans/one", "scans/one", ending="_mask")
    write(tmp_path, ["c"], "scans/two", "scans/two", ending="_mask")
    samples = find_samples(images=f"{tmp_path}/scans/**/*.png", masks=f"{tmp_path}/**/*_mask.png")
    assert list(samples["id"]) == ["a", "b", "c"]
    alone = find_samples(images=f"{tmp_path}/scans/one/?.png")
    assert list(alone["mask"]) == ["", ""]


def test_a_mask_belongs_to_the_longest_stem_and_the_common_ending(tmp_path):
    write(tmp_path, ["leaf1", "leaf12", "leaf2"], ending="_mask")
    (tmp_path / "images" / "leaf2.png").unlink()
    (tmp_path / "masks" / "leaf12_mask.png").rename(tmp_path / "masks" / "leaf12_old.png")
    Image.fromarray(OBJECT).save(tmp_path / "masks" / "leaf13_mask.png")
    write(tmp_path, ["leaf3"], ending="_mask")
    with pytest.warns(UserWarning):
        samples = find_samples(tmp_path)
    assert [Path(one).name for one in samples["mask"]] == ["leaf1_mask.png", "leaf3_mask.png"]
    named = {Path(one.file).name for one in samples.attrs["problems"]}
    assert named == {"leaf12.png", "leaf12_old.png", "leaf13_mask.png", "leaf2_mask.png"}


def test_the_common_ending_goes_before_a_whole_name(tmp_path):
    """Else cell_1 would get the mask of cell."""
    names = ["cell", "cell_1", "cell_2", "cell_3"]
    samples = find_samples(write(tmp_path, names, ending="_1"))
    assert [Path(one).stem for one in samples["mask"]] == [f"{name}_1" for name in names]
    (tmp_path / "masks" / "cell_1_1.png").unlink()
    with pytest.warns(UserWarning, match=r"images/cell_1\.png"):
        assert list(find_samples(tmp_path)["id"]) == ["cell", "cell_2", "cell_3"]


@pytest.mark.fault("as many masks of one ending as of another", "refused")
def test_two_kinds_of_masks_in_one_folder_are_not_told_apart(tmp_path):
    write(tmp_path, ["a", "b"], ending="_edge", mask=OBJECT[::-1])
    write(tmp_path, ["a", "b"], ending="_mask")
    with pytest.raises(DataError, match=r"_edge.*_mask"):
        find_samples(tmp_path)


@pytest.mark.fault("masks of other pictures", "none is taken")
def test_a_letter_in_common_makes_no_pair(tmp_path):
    write(tmp_path, ["a", "b", "c"])
    for mask in sorted((tmp_path / "masks").iterdir()):
        mask.rename(mask.with_name(f"c{mask.stem}ell.png"))
    with pytest.raises(DataError):
        find_samples(tmp_path)


@pytest.mark.fault("one name in several folders of a pattern", "left out, and named")
@pytest.mark.parametrize("missing", [None, "img/p1", "lab/p1", "lab/p2"])
def test_names_that_several_folders_share_are_left_out(tmp_path, missing):
    for patient in ("p1", "p2"):
        write(tmp_path, ["001", f"{patient}_002"], f"img/{patient}", f"lab/{patient}")
    if missing:
        (tmp_path / missing / "001.png").unlink()
    places = dict(images=f"{tmp_path}/img/**/*.png", masks=f"{tmp_path}/lab/**/*.png")
    with pytest.warns(UserWarning, match=r"001\.png"):
        samples = find_samples(**places)
    assert list(samples["id"]) == ["p1_002", "p2_002"]


@pytest.mark.fault("files that are no pictures beside images and masks", "named")
def test_other_files_are_named_in_folders_of_images_and_masks(tmp_path):
    write(tmp_path, ["a", "b"], "photos", "labels")
    (tmp_path / "photos" / "c.heic").touch()
    (tmp_path / "labels" / "d.npy").touch()
    with pytest.warns(UserWarning, match=r"(?s)c\.heic.*d\.npy|d\.npy.*c\.heic|and 1 more"):
        samples = find_samples(images=tmp_path / "photos", masks=tmp_path / "labels")
    named = {Path(one.file).name for one in samples.attrs["problems"]}
    assert named == {"c.heic", "d.npy"} and len(samples) == 2


def test_a_group_is_made_of_the_path(tmp_path, data_set):
    write(tmp_path, ["p1_a", "p1_b", "p2_a"])
    samples = find_samples(tmp_path, group=lambda path: int(path.stem[1]))
    assert list(samples["group"]) == ["1", "1", "2"]
    assert set(find_samples(data_set, group=lambda path: "x")["group"]) == {"x"}


@pytest.mark.parametrize("value", [1, 7, 255, 65535])
def test_a_mask_is_0_and_any_one_other_value(tmp_path, value):
    kind = np.uint16 if value > 255 else np.uint8
    Image.fromarray(OBJECT.astype(kind) * kind(value)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png"), OBJECT == 1)


@pytest.mark.fault(
    "mask of other values than 0 and one more", "refused: names them, and mask_value"
)
@pytest.mark.parametrize(
    ("mask", "named"), [(OBJECT + 1, "1, 2"), (OBJECT * 0 + 3, "3"), (np.arange(12), "9, ...")]
)
def test_values_that_do_not_tell_the_object_are_named(tmp_path, mask, named):
    mask = np.broadcast_to(mask.astype(np.uint8), (12, mask.shape[-1]))
    Image.fromarray(np.ascontiguousarray(mask)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=rf"mask\.png: .*{named}.*mask_value="):
        load_mask(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png", 2), mask == 2)


def test_a_mask_value_of_a_palette_is_the_index(tmp_path):
    mask = Image.fromarray(OBJECT * 2)
    mask.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0])
    mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png", 2), OBJECT == 1)
    with pytest.raises(DataError, match="0, 2"):
        load_mask(tmp_path / "mask.png")


def test_the_mask_value_is_remembered_with_the_table_and_its_pictures(tmp_path):
    write(tmp_path, ["a", "b"], mask=OBJECT + 1)
    with pytest.raises(DataError, match="mask_value"):
        find_samples(tmp_path)
    tables = [find_samples(tmp_path, mask_value=value) for value in (1, 2)]
    assert list(tables[1].columns) == [*PLAIN, "mask_value"]
    assert fingerprint(tables[0]) != fingerprint(tables[1])
    first, second = (decode_once(table, (12, 16)) for table in tables)
    np.testing.assert_array_equal(second[0, 1], OBJECT * 255)
    np.testing.assert_array_equal(first[:, 1], 255 - second[:, 1])


def test_colour_and_height_and_width(tmp_path):
    samples = find_samples(write(tmp_path, ["a", "b"]))
    assert load_image(samples["image"][1], (6, 8), colour=True).shape == (6, 8, 3)
    for _ in range(2):
        decoded = decode_once(samples, (6, 8), colour=True)
        assert decoded.shape == (2, 4, 6, 8) and decoded[1, :3, 0, 0].tolist() == [200, 101, 20]
    assert decode_once(samples, (6, 8)).shape == (2, 2, 6, 8)


@pytest.mark.fault("folder or pattern of pictures without any", "named")
@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_pattern_that_matches_nothing_is_named(tmp_path, part):
    write(tmp_path, ["a", "b"])
    places = {"images": tmp_path / "images", "masks": tmp_path / "masks"}
    with pytest.raises(DataError, match=r"nowhere/\*\.png"):
        find_samples(**places | {part: f"{tmp_path}/nowhere/*.png"})


@pytest.mark.parametrize(
    "wrong", [{"masks": "m"}, {"root": "r", "images": "i"}, {"mask_value": "2"}]
)
def test_arguments_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        find_samples(**wrong)
