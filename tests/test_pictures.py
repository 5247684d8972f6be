import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from unetlib import DataError, load_coverage, load_image
from unetlib.pictures import image_size

# ------------------------------------------------------------------------------------- load_image


def photo(width: int, height: int, noise: float) -> Image.Image:
    """A car-like scene: soft light, sharp edges, fine texture, colour."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / height
    light = np.stack([200 - 60 * y, 190 - 50 * y + 10 * x, 180 - 40 * y], axis=2)
    light += rng.normal(0, noise, (height, width, 1))
    scene = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    draw.ellipse((width // 6, height // 3, 5 * width // 6, 3 * height // 4), fill=(150, 20, 30))
    for wheel in (width // 4, 2 * width // 3):
        draw.ellipse((wheel, height // 2, wheel + height // 4, 3 * height // 4), fill=(15, 15, 18))
    for bar in range(width // 3, width // 2, 6):
        draw.line((bar, height // 3, bar, height // 2), fill=(240, 240, 240), width=2)
    return scene.filter(ImageFilter.GaussianBlur(1))


@pytest.mark.parametrize("noise", [0, 20])
def test_reduced_scale_decoding_is_within_half_a_grey_level_of_full_decoding(tmp_path, noise):
    photo(1918, 1280, noise).save(tmp_path / "photo.jpg", quality=90)
    with Image.open(tmp_path / "photo.jpg") as opened:
        grey = opened.convert("L")
    for size in (64, 128, 256):
        full = np.asarray(grey.resize((size, size), Image.Resampling.BOX))
        reduced = load_image(tmp_path / "photo.jpg", size)
        assert np.abs(reduced.astype(float) - full).mean() < 0.5, size


def quadrants() -> np.ndarray:
    """Greys that tell any turn or flip: 40 | 90 above 140 | 220."""
    grey = np.empty((16, 24), np.uint8)
    grey[:8, :12], grey[:8, 12:], grey[8:, :12], grey[8:, 12:] = 40, 90, 140, 220
    return grey


QUADRANTS = [[40, 90], [140, 220]]


@pytest.mark.fault("picture of another mode or format", "read as the same grey")
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", ".png"),
        ("LA", ".png"),
        ("P", ".png"),
        ("RGB", ".png"),
        ("RGBA", ".png"),
        ("L", ".jpg"),
        ("RGB", ".jpg"),
        ("CMYK", ".jpg"),
        ("CMYK", ".tif"),
    ],
)
def test_every_kind_of_file_reads_as_the_same_grey(tmp_path, mode, suffix):
    image = Image.fromarray(quadrants()).convert("RGB").convert(mode)
    path = tmp_path / f"image{suffix}"
    image.save(path, **({"quality": 95} if suffix == ".jpg" else {}))
    read = load_image(path, 2)
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read, QUADRANTS, atol=2)
    np.testing.assert_allclose(load_image(image, 2), QUADRANTS, atol=2)


@pytest.mark.fault("16-bit picture for the model", "read as what it shows")
def test_16_bit_greys_keep_their_range(tmp_path):
    deep = quadrants().astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(load_image(tmp_path / "deep.png", 2), QUADRANTS, atol=1)
    np.testing.assert_allclose(load_image(deep, 2), QUADRANTS, atol=1)


@pytest.mark.fault("picture of 32-bit greys (float TIFF, mode I)", "read as what it shows")
@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.float32, 1), (np.int32, 255), (np.int32, 65535)],
    ids=["floats up to 1", "integers up to 255", "integers up to 65535"],
)
def test_32_bit_greys_keep_their_range(tmp_path, dtype, white):
    image = Image.fromarray((quadrants() * (white / 255)).astype(dtype))
    image.save(tmp_path / "deep.tif")
    np.testing.assert_allclose(load_image(tmp_path / "deep.tif", 2), QUADRANTS, atol=1)
    np.testing.assert_allclose(load_image(image, 2), QUADRANTS, atol=1)


@pytest.mark.fault(
    "picture of 32-bit greys that do not tell which one is white",
    "refused: names the greys and the remedy",
)
@pytest.mark.parametrize(
    ("dtype", "grey"),
    [(np.float32, 200), (np.float32, -0.5), (np.float32, np.nan), (np.int32, -1), (np.int32, 1e6)],
    ids=["float above 1", "float below 0", "nan", "negative", "above 65535"],
)
def test_greys_of_unknown_range_are_refused(tmp_path, dtype, grey):
    greys = quadrants().astype(dtype) * dtype(0)
    greys[0, 0] = grey
    image, path = Image.fromarray(greys), tmp_path / "deep.tif"
    image.save(path)
    with pytest.raises(DataError, match=r"deep\.tif: .* 8 bits"):
        load_image(path, 2)
    with pytest.raises(DataError, match="8 bits"):
        load_image(image, 2)


@pytest.mark.fault("EXIF-rotated picture for the model", "read upright")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_sideways_gives_an_upright_image(tmp_path, orientation):
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(quadrants())
    stored = upright.transpose(turned[orientation]) if orientation in turned else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    np.testing.assert_allclose(load_image(tmp_path / "photo.jpg", 2), QUADRANTS, atol=2)


@pytest.mark.parametrize(
    "array",
    [
        quadrants(),
        quadrants()[:, :, None],
        np.dstack([quadrants()] * 3),
        np.dstack([quadrants()] * 3 + [np.full((16, 24), 255, np.uint8)]),
        quadrants() / 255,
        (quadrants() / 255).astype(np.float32),
        np.dstack([quadrants() / 255] * 3),
    ],
    ids=["grey", "one channel", "colour", "with alpha", "float64", "float32", "float colour"],
)
def test_arrays_read_as_files_do(array):
    np.testing.assert_array_equal(load_image(array, 2), QUADRANTS)


@pytest.mark.fault("array that is no image", "refused")
@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 4), 300),
        np.full((4, 4), 1.5),
        np.full((4, 4), -0.5),
        np.full((4, 4), np.nan),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((0, 0)),
    ],
    ids=[
        "int64",
        "above 1",
        "below 0",
        "nan",
        "batch",
        "channels first",
        "line",
        "no rows",
        "nothing",
    ],
)
def test_an_array_that_is_no_image_is_refused(array):
    with pytest.raises(DataError):
        load_image(array, 4)


def test_size_may_be_height_and_width():
    assert load_image(quadrants(), (4, 8)).shape == (4, 8)


@pytest.mark.parametrize(("orientation", "seen"), [(1, (16, 24)), (3, (16, 24)), (6, (24, 16))])
def test_the_size_of_an_image_is_the_one_that_is_seen(tmp_path, orientation, seen):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quadrants()).save(tmp_path / "photo.jpg", exif=exif)
    assert image_size(tmp_path / "photo.jpg") == seen
    with Image.open(tmp_path / "photo.jpg") as opened:
        assert image_size(opened) == seen
    assert image_size(quadrants()) == (16, 24)


def test_the_image_is_stretched_by_area_averaging():
    stripes = np.tile(np.array([0, 255], np.uint8), (8, 4))
    np.testing.assert_array_equal(load_image(stripes, 4), np.full((4, 4), 128))


def test_the_callers_image_is_left_alone(tmp_path):
    path = tmp_path / "photo.jpg"
    photo(800, 600, 0).save(path)
    with Image.open(path) as opened:
        load_image(opened, 32)
        assert (opened.size, opened.mode) == ((800, 600), "RGB")


@pytest.mark.fault("file that is no image, given to the model", "named, with the remedy")
@pytest.mark.parametrize("content", [None, b"", b"no image", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        load_image(path, 8)


@pytest.mark.fault("photo cut off, given to the model", "named, with the remedy")
def test_a_cut_off_photo_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    photo(400, 300, 10).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"broken\.jpg"):
        load_image(path, 8)


SIZES = [0, -4, (0, 5), (120.0, 160.0), "12", None, (8, 8, 8)]


@pytest.mark.fault("an impossible size for a sound picture", "the size is named, not the file")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_impossible_size_is_named(tables, size):
    for load, column in ((load_image, "image"), (load_coverage, "mask")):
        with pytest.raises(ValueError, match=re.escape(f"size={size!r}")):
            load(tables[1][column][0], size)


@pytest.mark.parametrize(
    "size", [np.int64(8), np.array([8, 8]), [8, 8]], ids=["one", "two", "list"]
)
def test_a_size_may_be_numpys(tables, size):
    assert load_image(tables[1]["image"][0], size).shape == (8, 8)
    assert load_coverage(tables[1]["mask"][0], size).shape == (8, 8)


@pytest.mark.fault("something that is no image", "refused by its type")
@pytest.mark.parametrize(
    "thing",
    [None, 3, torch.zeros(1, 4, 4), {"a.jpg"}, b"\xff\xd8"],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_image_is_refused(thing):
    with pytest.raises(DataError):
        load_image(thing, 8)


def test_an_open_file_is_an_image_or_refused(tables, tmp_path):
    path = tables[1]["image"][0]
    with open(path, "rb") as file:
        np.testing.assert_array_equal(load_image(file, 8), load_image(path, 8))
    with pytest.raises(DataError):
        load_image(io.BytesIO(b"no image"), 8)


# ---------------------------------------------------------------------------------- load_coverage


def test_coverage_is_the_share_of_each_pixel_that_the_car_covers(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :2] = 1  # all of the first small pixel
    mask[2:, 4:6], mask[2, 6] = 1, 1  # all and a quarter of the last two below
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    coverage = load_coverage(tmp_path / "mask.png", (2, 4))
    np.testing.assert_allclose(coverage, [[255, 0, 0, 0], [0, 0, 255, 64]], atol=1)


@pytest.mark.parametrize("dtype", [bool, np.uint16])
def test_coloured_arrays_of_other_types_are_read(dtype):
    white = np.full((8, 8, 3), np.iinfo(dtype).max if dtype is np.uint16 else True, dtype)
    assert (load_image(white, 4) == 255).all()


@pytest.mark.fault("an array whose white cannot be told", "refused, with its shape and type")
@pytest.mark.parametrize(
    "array",
    [
        np.full((8, 8), -1, np.int8),
        np.full((8, 8), 200, np.int32),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.full((8, 8), np.nan),
        np.full((8, 8), 200.0),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_an_array_whose_white_cannot_be_told_is_refused(array):
    with pytest.raises(DataError, match=f"{array.dtype}"):
        load_image(array, 4)
