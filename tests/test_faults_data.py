"""What a learner's data folder can be like: each fault is made for real in a small data set."""

import json
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawn_cars import draw_car, write_data_set
from other_process import in_another_process
from PIL import ExifTags, Image, ImageFilter

from unetlib import (
    CarvanaDataset,
    DataError,
    check,
    decode_once,
    find_samples,
    load_image,
    load_mask,
    read_metadata,
    read_rles,
    rle_decode,
    write_subset,
)
from unetlib.__main__ import main
from unetlib.dataset import decode

ID = "000000000000_05"
PHOTO, MASK = f"train/{ID}.jpg", f"train_masks/{ID}_mask.gif"


def fault(what: str, outcome: str, *values):
    """A parameter that is a fault of its own."""
    return pytest.param(*values, marks=pytest.mark.fault(what, outcome), id=what)


@pytest.fixture
def root(data_set, tmp_path):
    """5 cars with masks and 1 without, 4 angles each; nothing is wrong with it."""
    return shutil.copytree(data_set, tmp_path / "data")


def contents(folder: Path) -> dict:
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def true_mask() -> np.ndarray:
    return np.asarray(draw_car(0, 5)[1]) == 1


def replace_mask(root: Path, image: Image.Image, suffix: str = ".png", **options) -> None:
    (root / MASK).unlink()
    image.save((root / MASK).with_suffix(suffix), **options)


# --------------------------------------------------------------------- one file that cannot be used


def cut_off(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def zero_tail(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-400] + bytes(400))


def photo_as_png(root, **options) -> Path:
    path = (root / PHOTO).with_suffix(".png")
    Image.open(root / PHOTO).save(path, **options)
    (root / PHOTO).unlink()
    return path


def smooth_jpeg_mask(root):
    grey = Image.fromarray(true_mask()).convert("L")
    replace_mask(root, grey.filter(ImageFilter.GaussianBlur(1)), ".jpg")


def animated_mask(root):
    frames = [Image.fromarray(true_mask()).convert("L"), Image.new("L", (60, 40))]
    frames[0].save(root / MASK, save_all=True, append_images=frames[1:])


def mask_with_a_black_palette(root):
    mask = Image.fromarray(true_mask().astype(np.uint8))
    mask.putpalette([0, 0, 0, 0, 0, 0])
    replace_mask(root, mask)


def decompression_bomb(path: Path) -> None:
    """50 MB of zeros when unpacked, 50 kB on the disk."""
    path.unlink()
    side = 20_000
    rows = zlib.compress((b"\0" + bytes(side // 8)) * side)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        png += struct.pack(">I", len(body)) + name + body
        png += struct.pack(">I", zlib.crc32(name + body))
    path.with_suffix(".png").write_bytes(png)


def mask_of_the_stored_size(root):
    """The photo is seen upright at 40x60, its mask was drawn over the stored 60x40 pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(root / PHOTO).save(root / PHOTO, exif=exif)


def link_to_nowhere(root):
    (root / PHOTO).unlink()
    (root / PHOTO).symlink_to(root / "nowhere.jpg")


def folder_as_photo(root):
    (root / PHOTO).unlink()
    (root / PHOTO).mkdir()


def second_mask(root):
    shutil.copy(root / MASK, root / f"train_masks/{ID}.gif")


LEFT_OUT = "left out and named, the others are kept"
PAGE = "<!DOCTYPE html><html><body>Error 403</body></html>"


@pytest.mark.parametrize(
    ("damage", "file", "word"),
    [
        fault(
            "image without mask", LEFT_OUT, lambda root: (root / MASK).unlink(), PHOTO, f"{ID}_mask"
        ),
        fault("mask without image", LEFT_OUT, lambda root: (root / PHOTO).unlink(), MASK, ""),
        fault(
            "mask of another size",
            LEFT_OUT,
            lambda root: replace_mask(root, Image.new("1", (30, 20)), ".gif"),
            MASK,
            "30x20 pixels for an image of 60x40",
        ),
        fault(
            "mask as antialiased JPEG",
            LEFT_OUT,
            smooth_jpeg_mask,
            MASK.replace("gif", "jpg"),
            "PNG",
        ),
        fault("mask as animated GIF", LEFT_OUT, animated_mask, MASK, "2 frames"),
        fault(
            "mask whose palette is all black",
            LEFT_OUT,
            mask_with_a_black_palette,
            MASK.replace("gif", "png"),
            "mask_value",
        ),
        fault("mask cut off", LEFT_OUT, lambda root: cut_off(root / MASK), MASK, "cannot be read"),
        fault(
            "two masks of one image",
            "the second is named",
            second_mask,
            f"train_masks/{ID}.gif",
            "second",
        ),
        fault(
            "JPEG cut off", LEFT_OUT, lambda root: cut_off(root / PHOTO), PHOTO, "cannot be read"
        ),
        fault(
            "JPEG of the right length whose end is zeros",
            LEFT_OUT,
            lambda root: zero_tail(root / PHOTO),
            PHOTO,
            "cannot be read",
        ),
        fault(
            "PNG photo cut off",
            LEFT_OUT,
            lambda root: cut_off(photo_as_png(root)),
            PHOTO.replace("jpg", "png"),
            "cannot be read",
        ),
        fault(
            "photo of zero bytes",
            LEFT_OUT,
            lambda root: (root / PHOTO).write_bytes(b""),
            PHOTO,
            "cannot be read",
        ),
        fault(
            "text named .jpg",
            LEFT_OUT,
            lambda root: (root / PHOTO).write_text("a list of cars"),
            PHOTO,
            "cannot be read",
        ),
        fault(
            "HTML error page named .jpg",
            LEFT_OUT,
            lambda root: (root / PHOTO).write_text(PAGE),
            PHOTO,
            "cannot be read",
        ),
        fault(
            "photo of 20,000x20,000 pixels (decompression bomb)",
            LEFT_OUT,
            lambda root: decompression_bomb(root / PHOTO),
            PHOTO.replace("jpg", "png"),
            "pixels",
        ),
        fault(
            "EXIF-rotated photo, mask as stored",
            LEFT_OUT,
            mask_of_the_stored_size,
            MASK,
            "60x40 pixels for an image of 40x60",
        ),
        fault("link to a file that is gone", LEFT_OUT, link_to_nowhere, PHOTO, "cannot be read"),
        fault("folder named .jpg", LEFT_OUT, folder_as_photo, PHOTO, "Is a directory"),
        fault(
            "photo not named <car>_<angle>",
            LEFT_OUT,
            lambda root: (root / PHOTO).rename(root / "train/holiday.jpg"),
            "train/holiday.jpg",
            "<car>_<angle>",
        ),
        fault(
            "angle in superscript digits",
            LEFT_OUT,
            lambda root: (root / PHOTO).rename(root / "train/car_²³.jpg"),
            "train/car_²³.jpg",
            "<car>_<angle>",
        ),
        fault(
            "one id in train/ and test/",
            "the one in test/ is left out and named",
            lambda root: shutil.copy(root / PHOTO, root / f"test/{ID}.jpg"),
            f"test/{ID}.jpg",
            "",
        ),
    ],
)
def test_a_bad_file_is_left_out_and_named_with_a_remedy(root, damage, file, word):
    damage(root)
    before = contents(root)
    with pytest.warns(UserWarning) as caught:
        samples = find_samples(root)
    (warned,) = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    (named,) = [one for one in samples.attrs["problems"] if one.file == str(root / file)]
    assert str(named) in warned and word in str(named) and named.remedy
    assert len(samples) in (23, 24) and samples["id"].is_unique
    assert len(CarvanaDataset(samples[samples["mask"] != ""], 16)) in (19, 20)
    assert check(root).query("file == @file")["problem"].tolist() == [named.problem]
    assert contents(root) == before


@pytest.mark.fault("photo in a format the course does not read", "check names it")
def test_a_file_that_would_be_ignored_is_named_by_check(root):
    (root / "train" / f"{ID}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "test" / "more").mkdir()
    assert sorted(check(root)["file"]) == ["test/more", f"train/{ID}.heic"]
    with pytest.warns(UserWarning, match=f"{ID}.heic"):
        find_samples(root)


@pytest.mark.fault("photo that you may not read", LEFT_OUT)
def test_a_photo_without_permission_is_left_out():
    """As nobody, because root may read everything; /tmp, because nobody may enter root's folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_data_set(Path(folder, "data"))
        (root / PHOTO).chmod(0)
        Path(folder).chmod(0o755)
        if not os.geteuid():
            os.seteuid(65534)
        try:
            with pytest.warns(UserWarning, match=f"{ID}.jpg.*Permission denied"):
                samples = find_samples(root)
        finally:
            os.seteuid(os.getuid())
    assert len(samples) == 23


@pytest.mark.fault("photo deleted after the table was made", "named, with the remedy")
@pytest.mark.parametrize("decoder", [decode, decode_once])
def test_a_photo_that_vanishes_is_named(root, decoder):
    samples = find_samples(root)
    (root / PHOTO).unlink()
    with pytest.raises(DataError, match=f"{ID}.jpg") as caught:
        CarvanaDataset(samples[samples["mask"] != ""], 16, decode=decoder)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- files that can be used


def coloured_mask(root):
    red = np.zeros((40, 60, 3), np.uint8)
    red[true_mask(), 0] = 128
    replace_mask(root, Image.fromarray(red))


def swapped_palette_mask(root):
    mask = Image.fromarray((~true_mask()).astype(np.uint8))
    mask.putpalette([255, 255, 255, 0, 0, 0])
    replace_mask(root, mask)


def grey_mask(mode="L", factor=255):
    def replace(root):
        grey = Image.fromarray(true_mask().astype(np.uint8) * np.uint8(factor))
        replace_mask(root, grey.convert(mode))

    return replace


def mask_of_16_bits(root):
    replace_mask(root, Image.fromarray(true_mask().astype(np.uint16) * 65535))


READ_RIGHT, dark = "read as what it shows", grey_mask(factor=1)


@pytest.mark.parametrize(
    "store",
    [
        fault("mask as 0/255 PNG", READ_RIGHT, grey_mask()),
        fault("mask as 0/1 PNG, black to the eye", READ_RIGHT, dark),
        fault("mask as RGB", READ_RIGHT, grey_mask("RGB")),
        fault("mask as RGBA", READ_RIGHT, grey_mask("RGBA")),
        fault("mask as dark red on black", READ_RIGHT, coloured_mask),
        fault("mask as 16-bit PNG", READ_RIGHT, mask_of_16_bits),
        fault("palette mask with swapped indices", READ_RIGHT, swapped_palette_mask),
    ],
)
def test_a_mask_is_read_right_however_it_is_stored(root, store):
    store(root)
    with warnings.catch_warnings(action="ignore"):  # of a mask unlike the others
        samples = find_samples(root)
    row = samples[samples["id"] == ID].iloc[0]
    np.testing.assert_array_equal(load_mask(row["mask"]), true_mask())
    if store in (coloured_mask, dark):
        (found,) = check(root).itertuples()
        assert found.file == f"train_masks/{Path(row['mask']).name}" and "kept" in found.problem
    else:
        assert check(root).empty


def photo_as(mode, suffix):
    def replace(root):
        photo = Image.open(root / PHOTO).convert(mode)
        (root / PHOTO).unlink()
        photo.save((root / PHOTO).with_suffix(suffix), quality=95)

    return replace


def photo_of_16_bits(root):
    grey = np.asarray(Image.open(root / PHOTO).convert("L"))
    (root / PHOTO).unlink()
    Image.fromarray(grey.astype(np.uint16) * 257).save((root / PHOTO).with_suffix(".png"))


@pytest.mark.parametrize(
    "store",
    [
        fault("photo as RGBA", READ_RIGHT, photo_as("RGBA", ".png")),
        fault("photo as 16-bit PNG", READ_RIGHT, photo_of_16_bits),
        fault("photo as CMYK", READ_RIGHT, photo_as("CMYK", ".jpg")),
        fault("photo named .JPG", READ_RIGHT, photo_as("RGB", ".JPG")),
    ],
)
def test_a_photo_is_read_right_however_it_is_stored(root, store, tmp_path):
    expected = load_image(root / PHOTO, (40, 60)).astype(int)
    store(root)
    samples = find_samples(root)
    row = samples[samples["id"] == ID].iloc[0]
    assert np.abs(load_image(row["image"], (40, 60)) - expected).mean() < 3
    assert check(root).empty
    subset = write_subset(root, tmp_path / "subset", 5, size=(40, 60))
    assert np.abs(load_image(subset / PHOTO, (40, 60)) - expected).mean() < 4


@pytest.mark.fault("EXIF-rotated photo, mask as seen", "photo, mask and size columns agree")
@pytest.mark.parametrize(
    ("orientation", "turn"), [(6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)]
)
def test_a_photo_taken_sideways_agrees_with_its_mask(root, orientation, turn, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    expected = load_image(root / PHOTO, (40, 60)).astype(int)
    Image.open(root / PHOTO).transpose(turn).save(root / PHOTO, quality=95, exif=exif)
    assert check(root).empty
    row = find_samples(root).set_index("id").loc[ID]
    assert (row["width"], row["height"]) == (60, 40)
    for place in (root, write_subset(root, tmp_path / "subset", 5, size=(40, 60))):
        photo, mask = load_image(place / PHOTO, (40, 60)), load_mask(place / MASK)
        assert np.abs(photo - expected).mean() < 4
        assert photo[mask].mean() < photo[~mask].mean() - 80, "the dark part is the car"


def whole_mask(colour):
    return lambda root: replace_mask(root, Image.new("L", (60, 40), colour))


def half_turn(root):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    photo = Image.open(root / PHOTO).transpose(Image.Transpose.ROTATE_180)
    photo.save(root / PHOTO, exif=exif)


KEPT = "kept, and named as doubtful"


@pytest.mark.parametrize(
    ("damage", "file", "word"),
    [
        fault("mask all black", KEPT, whole_mask(0), MASK.replace("gif", "png"), "black"),
        fault("mask all white", KEPT, whole_mask(255), MASK.replace("gif", "png"), "white"),
        fault("photo turned by 180 degrees in EXIF", KEPT, half_turn, PHOTO, "EXIF"),
    ],
)
def test_a_doubtful_pair_is_kept_and_named(root, damage, file, word):
    damage(root)
    (root / "train_masks.csv").unlink()
    with pytest.warns(UserWarning, match=f"{file}: kept.*{word}"):
        samples = find_samples(root)
    assert len(samples) == 24
    (row,) = check(root).itertuples()
    assert row.file == file and word in row.problem and row.remedy


@pytest.mark.fault("unicode and spaces in paths and names", "no difference")
def test_any_name_will_do(tmp_path):
    root = write_data_set(tmp_path / "Måns' bilder 車 100 %", cars=5)
    for path in root.glob("t*/*_*"):
        path.rename(path.with_name(path.name.replace("0" * 11, "röda bilen ")))
    (root / "train_masks.csv").unlink()
    (root / "metadata.csv").unlink()
    assert check(root).empty
    samples = find_samples(root)
    assert "röda bilen 1_05" in set(samples["id"]) and "car" not in samples
    assert len(CarvanaDataset(samples[samples["mask"] != ""], 16)) == 20


@pytest.mark.fault("folder and files that are links", "no difference")
def test_links_are_followed(root, tmp_path):
    (root / PHOTO).rename(tmp_path / "elsewhere.jpg")
    (root / PHOTO).symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert check(tmp_path / "link").empty
    assert len(find_samples(tmp_path / "link")) == 24


@pytest.mark.fault("read-only data folder", "no difference: nothing is written there")
def test_a_read_only_folder_is_enough(own_disk):
    disk = own_disk("size=4m")
    root = write_data_set(disk / "data", cars=5)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OSError):
        (root / "new").touch()
    assert check(root).empty
    samples = find_samples(root)
    assert len(CarvanaDataset(samples[samples["mask"] != ""], 16)) == 20


# ------------------------------------------------------------------------------------ wrong folders


def pack(root, *names):
    """Archives as Kaggle has them, instead of the folder or file."""
    for name in names:
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path in sorted(root.glob(f"{name}/*")) or [root / name]:
                archive.write(path, path.relative_to(root))
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink()


def all_packed(root):
    shutil.rmtree(root / "test")
    pack(root, "train", "train_masks", "train_masks.csv", "metadata.csv")
    return root


def nested(root):
    shutil.rmtree(root / "test")
    for name in ("train", "train_masks"):
        (root / name).rename(root / "moved")
        (root / name).mkdir()
        (root / "moved").rename(root / name / name)
    return root


def empty(root):
    (root / "nothing").mkdir()
    return root / "nothing" / "at" / "all"


def empty_folder(root):
    (root / "nothing" / "here").mkdir(parents=True)
    return root / "nothing" / "here"


SAID = "said, with the remedy"
FOUND = "the right folder is found and suggested"


@pytest.mark.parametrize(
    ("point", "named"),
    [
        fault("empty folder", SAID, empty_folder, "{}: no images"),
        fault("no such folder", SAID, empty, "{}: no such folder"),
        fault(
            "folder one level too high", FOUND, lambda root: root.parent, "UNETLIB_DATA at {root}."
        ),
        fault(
            "folder one level too low",
            FOUND,
            lambda root: root / "train",
            "UNETLIB_DATA at {root}.",
        ),
        fault(
            "archive instead of a folder",
            SAID,
            lambda root: all_packed(root) / "train.zip",
            "{}: no such folder",
        ),
        fault(
            "archives not unpacked",
            "said, with the command that unpacks",
            all_packed,
            'python -m zipfile -e "{root}/train.zip" "{root}"',
        ),
        fault("train.zip unpacked into train/", SAID, nested, "{}: no images"),
    ],
)
def test_a_wrong_folder_is_one_sentence_with_a_remedy(root, point, named, capsys):
    folder = point(root)
    before = contents(root)
    expected = named.format(folder, root=root)
    with pytest.raises(DataError) as caught:
        find_samples(folder)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert main(["check", str(folder)]) == 1
    assert expected in capsys.readouterr().out
    assert contents(root) == before


@pytest.mark.fault("folder that you may not look into", "said")
def test_a_locked_folder_is_no_empty_one():
    with tempfile.TemporaryDirectory() as folder:
        root = write_data_set(Path(folder, "data"))
        (root / "train").chmod(0)
        shutil.rmtree(root / "test")
        Path(folder).chmod(0o755)
        if not os.geteuid():
            os.seteuid(65534)
        try:
            with pytest.raises(DataError, match="that you may see"):
                find_samples(root)
        finally:
            os.seteuid(os.getuid())
            (root / "train").chmod(0o755)


@pytest.mark.fault("one archive of several not unpacked", "named, with the command that unpacks")
@pytest.mark.parametrize("name", ["train_masks", "train_masks.csv", "metadata.csv"])
def test_each_archive_left_packed_is_named(root, name):
    pack(root, name)
    (row,) = check(root).query("file == @name + '.zip'").itertuples()
    command = row.remedy.removeprefix("run `").removesuffix("`")
    python, module, zip_module, *arguments = shlex.split(command)
    assert [python, module, zip_module] == ["python", "-m", "zipfile"]
    zipfile.main(arguments)
    assert check(root).empty, "the remedy has helped"


def refused_as_nobody(root) -> str:
    """What find_samples raises; root may write everywhere, and os.access asks for the real user."""
    if not os.geteuid():
        os.setreuid(65534, 0)
    with pytest.raises(DataError) as caught:
        find_samples(root)
    return str(caught.value)


@pytest.mark.fault("archives in a folder that you may only read", "the command unpacks elsewhere")
@pytest.mark.skipif(os.name != "posix", reason="makes a folder read-only as POSIX does")
def test_the_remedy_for_archives_in_a_read_only_folder_helps(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    all_packed(root).chmod(0o555)
    command = shlex.split(in_another_process(refused_as_nobody, root).split("`")[1])
    assert command[:3] == ["python", "-m", "unetlib"] and main(command[3:]) == 0
    assert len(find_samples(tmp_path / "carvana")) == 20


# ---------------------------------------------------------------------------------------- csv files


def edit(name, change):
    def apply(root):
        path = root / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def line(number):
    """A change that turns one line of a file into the given lines."""

    def change(*new):
        def apply(raw):
            lines = raw.splitlines()
            lines[number : number + 1] = [one.replace(b"{}", lines[number]) for one in new]
            return b"\n".join(lines) + b"\n"

        return apply

    return change


RLES, CARS = "train_masks.csv", "metadata.csv"
FIRST = "000000000000_01.jpg"
ROWS_KEPT = "named, the other rows are kept"


@pytest.mark.parametrize(
    ("name", "change", "named", "rows"),
    [
        fault(
            "train_masks.csv with a doubled row",
            "named, the first is used",
            RLES,
            line(1)(b"{}", FIRST.encode() + b",1 1"),
            FIRST[:-4],
            20,
        ),
        fault(
            "train_masks.csv with a row of three fields",
            ROWS_KEPT,
            RLES,
            line(1)(b"{},again"),
            FIRST,
            19,
        ),
        fault(
            "train_masks.csv with a row without a comma",
            ROWS_KEPT,
            RLES,
            line(1)(FIRST.encode()),
            FIRST,
            19,
        ),
        fault(
            "train_masks.csv with a quotation mark too many",
            ROWS_KEPT,
            RLES,
            line(20)(b'"{}'),
            "000000000004_13.jpg",
            19,
        ),
        fault(
            "metadata.csv with a doubled line",
            "named, the first is used",
            CARS,
            line(1)(b"{}", b"{}"),
            "000000000000",
            6,
        ),
        fault(
            "metadata.csv with a line of many fields",
            ROWS_KEPT,
            CARS,
            line(1)(b"{},,,,"),
            "000000000000",
            5,
        ),
    ],
)
def test_bad_rows_are_left_out_and_named(root, name, change, named, rows):
    edit(name, change)(root)
    before = contents(root)
    with pytest.warns(UserWarning, match=f"{name}: 1 .*: {named}") as caught:
        table = read_rles(root) if name == RLES else read_metadata(root)
    assert len(table) == rows
    assert [one.filename for one in caught] == [__file__], "on behalf of who has called"
    assert named in "\n".join(check(root).query("file == @name")["problem"])
    assert contents(root) == before


@pytest.mark.fault("many malformed rows", "counted, the first three are named")
def test_many_bad_rows_are_counted(root):
    edit(RLES, lambda raw: raw.replace(b".jpg,", b".jpg "))(root)
    (problem,) = check(root).query("file == @RLES")["problem"][:1]
    assert "20" in problem and "_05" in problem and "_13" not in problem


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        fault("train_masks.csv lacks a row", "check names the image", RLES, line(1)(), FIRST[:-4]),
        fault(
            "train_masks.csv with a row of an unknown image",
            "check names it",
            RLES,
            line(1)(b"{}", b"dog_01.jpg,1 1"),
            "dog_01",
        ),
        fault("metadata.csv lacks a line", "check names the car", CARS, line(1)(), "000000000000"),
    ],
)
def test_tables_that_disagree_with_the_files_are_named(root, name, change, named):
    edit(name, change)(root)
    (row,) = check(root).itertuples()
    assert row.file == name and named in row.problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (read_rles if name == RLES else read_metadata)(root)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        fault("train_masks.csv of zero bytes", SAID, RLES, lambda raw: b""),
        fault(
            "train_masks.csv with semicolons",
            SAID,
            RLES,
            lambda raw: raw.replace(b",", b";"),
        ),
        fault("train_masks.csv without a header", SAID, RLES, line(0)()),
        fault("train_masks.csv is a web page", SAID, RLES, lambda raw: PAGE.encode()),
        fault("train_masks.csv is a zip file", SAID, RLES, lambda raw: b"PK\x03\x04\x14\xff\0\x9c"),
        fault(
            "train_masks.csv saved as UTF-16",
            SAID,
            RLES,
            lambda raw: raw.decode().encode("utf-16"),
        ),
        fault("metadata.csv of zero bytes", SAID, CARS, lambda raw: b""),
        fault("metadata.csv saved as UTF-16", SAID, CARS, lambda raw: raw.decode().encode("utf16")),
    ],
)
def test_a_file_that_is_no_table_is_named(root, name, change):
    edit(name, change)(root)
    with pytest.raises(DataError, match=name) as caught:
        (read_rles if name == RLES else read_metadata)(root)
    assert "\n" not in str(caught.value)
    (row,) = check(root).itertuples()
    assert (row.file, row.problem) == (name, caught.value.problem.problem)
    assert len(find_samples(root)) == 24


@pytest.mark.parametrize(
    "change",
    [
        fault("csv files with CRLF", "no difference", lambda raw: raw.replace(b"\n", b"\r\n")),
        fault("csv files with a BOM", "no difference", lambda raw: b"\xef\xbb\xbf" + raw),
        fault("csv files with empty lines", "no difference", lambda raw: raw + b"\n\n"),
        fault("csv files without a last newline", "no difference", lambda raw: raw.rstrip()),
    ],
)
def test_harmless_differences_of_csv_files(root, change):
    expected = read_rles(root), read_metadata(root)
    for name in (RLES, CARS):
        edit(name, change)(root)
    assert check(root).empty
    assert read_rles(root).equals(expected[0]) and read_metadata(root).equals(expected[1])


DISAGREES = "check names the row"


@pytest.mark.parametrize(
    "code",
    [
        fault("code of another mask", DISAGREES, "1 5"),
        fault("code of no car", DISAGREES, ""),
        fault("code with overlaps", DISAGREES, "1 5 3 5"),
        fault("code beyond the end", DISAGREES, "2400 2"),
        fault("code of an odd count", DISAGREES, "1 2 3"),
        fault("code with words", DISAGREES, "1 two"),
    ],
)
def test_run_lengths_are_compared_with_the_masks(root, code):
    edit(RLES, line(1)(f"{FIRST},{code}".encode()))(root)
    (row,) = check(root).itertuples()
    assert row.file == RLES and row.problem.startswith(f"row {FIRST[:-4]}: ")
    assert len(find_samples(root)) == 24


@pytest.mark.fault("code read as a missing value by plain pandas", SAID)
def test_a_code_that_is_no_text_is_refused():
    with pytest.raises(DataError, match="read_rles"):
        rle_decode(float("nan"), 4, 4)


# -------------------------------------------------------------------------------------------- check


@pytest.mark.fault("eleven faults in one folder", "all are in one table")
def test_check_reports_all_problems_at_once(root):
    (root / MASK).unlink()
    cut_off(root / "train/000000000001_01.jpg")
    (root / "train/000000000001_05.jpg").write_bytes(b"")
    (root / "train_masks/000000000001_05_mask.gif").write_bytes(b"")
    (root / "test/000000000005_01.jpg").write_text(PAGE)
    Image.new("L", (60, 40), 9).save(root / "train_masks/000000000002_01_mask.gif")
    Image.new("1", (9, 9)).save(root / "train_masks/000000000002_05_mask.gif")
    (root / "train_masks/dog_01_mask.gif").write_bytes((root / "train_masks").name.encode())
    (root / "train/notes.txt").touch()
    edit(RLES, line(20)(b"{}", b"{}"))(root)
    edit(CARS, line(1)())(root)
    found = check(root)
    assert list(found.columns) == ["file", "problem", "remedy"]
    assert found["file"].nunique() == len(found) == 11
    assert (found["remedy"] != "").all()


def test_nothing_is_wrong_with_a_sound_folder(root, capsys):
    assert check(root).empty
    assert main(["check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"data: {root}", "problems: 0"]


def test_check_in_a_terminal_speaks_json(root, capsys):
    (root / PHOTO).write_bytes(b"")
    assert main(["check", str(root), "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ((problem,), folder) = result["problems"], result["data"]
    assert folder == str(root)
    assert problem["file"] == PHOTO and problem["problem"] and problem["remedy"]
