import io
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unetlib import config
from unetlib.carvana import DataError, find_samples, load_mask
from unetlib.dataset import (
    CarvanaDataset,
    augment_batch,
    augmentation,
    load_coverage,
    load_image,
    make_loader,
    to_tensor,
)

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


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("noise", [0, 20])
def test_reduced_scale_decoding_is_within_half_a_grey_level_of_full_decoding(tmp_path, size, noise):
    photo(1918, 1280, noise).save(tmp_path / "photo.jpg", quality=90)
    with Image.open(tmp_path / "photo.jpg") as opened:
        full = np.asarray(opened.convert("L").resize((size, size), Image.Resampling.BOX))
    reduced = load_image(tmp_path / "photo.jpg", size)
    assert np.abs(reduced.astype(float) - full).mean() < 0.5


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
    ids=["floats up to 1", "whole numbers up to 255", "whole numbers up to 65535"],
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
    message = "do not tell which one is white.*; save it with 8 bits a channel"
    with pytest.raises(DataError, match=rf"deep\.tif: cannot be read as an image .*{message}"):
        load_image(path, 2)
    with pytest.raises(DataError, match=f"an image of mode [FI]: .*{message}"):
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


@pytest.mark.fault("array that is no image", "refused, with the shapes that are")
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
    with pytest.raises(DataError, match="is no image"):
        load_image(array, 4)


def test_size_may_be_height_and_width():
    assert load_image(quadrants(), (4, 8)).shape == (4, 8)


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
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be read"):
        load_image(path, 8)


SIZES = [0, -4, (0, 5), (120.0, 160.0), "12", None, (8, 8, 8)]


@pytest.mark.fault("a size that is none, of a sound picture", "the size is named, not the file")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_size_that_is_none_is_named(tables, size):
    for load, column in ((load_image, "image"), (load_coverage, "mask")):
        with pytest.raises(ValueError, match="give one or two whole numbers above 0") as caught:
            load(tables[1][column][0], size)
        assert f"size={size!r}" in str(caught.value)


@pytest.mark.parametrize(
    "size", [np.int64(8), np.array([8, 8]), [8, 8]], ids=["one", "two", "list"]
)
def test_a_size_may_be_numpys(tables, size):
    assert load_image(tables[1]["image"][0], size).shape == (8, 8)
    assert load_coverage(tables[1]["mask"][0], size).shape == (8, 8)


@pytest.mark.fault("something that is no image", "refused, with what is")
@pytest.mark.parametrize(
    "thing",
    [None, 3, torch.zeros(1, 4, 4), {"a.jpg"}, b"\xff\xd8"],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_image_is_refused(thing):
    with pytest.raises(
        DataError, match="is no image: give a path, a file, a PIL image or an array"
    ):
        load_image(thing, 8)


def test_an_open_file_is_an_image_or_refused(tables, tmp_path):
    path = tables[1]["image"][0]
    with open(path, "rb") as file:
        np.testing.assert_array_equal(load_image(file, 8), load_image(path, 8))
    with pytest.raises(DataError, match="no picture inside"):
        load_image(io.BytesIO(b"no image"), 8)


# ---------------------------------------------------------------------------------- load_coverage


def test_coverage_is_the_share_of_each_pixel_that_the_car_covers(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :2] = 1  # all of the first small pixel
    mask[2:, 4:6], mask[2, 6] = 1, 1  # all and a quarter of the last two below
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    coverage = load_coverage(tmp_path / "mask.png", (2, 4))
    np.testing.assert_allclose(coverage, [[255, 0, 0, 0], [0, 0, 255, 64]], atol=1)


def test_hard_masks_are_one_from_half_of_the_area_up(own_data_set):
    mask = np.zeros((8, 12), np.uint8)
    mask[0, 0] = 1  # 1 of 6 pixels
    mask[2, 3:6] = 1  # 3 of 6
    mask[4:6, 6:8] = 1  # 4 of 6
    for path in (own_data_set / "train_masks").iterdir():
        path.unlink()
    Image.fromarray(mask * 255).save(own_data_set / "train_masks" / "000000000000_01_mask.png")
    Image.new("L", (12, 8)).save(own_data_set / "train" / "000000000000_01.jpg")
    with pytest.warns(UserWarning, match="left out"):
        table = find_samples(own_data_set).iloc[:1]
    _, hard = CarvanaDataset(table, 4)[0]
    _, soft = CarvanaDataset(table, 4, mask="soft")[0]
    assert hard.diagonal(dim1=1, dim2=2).tolist() == [[0, 1, 1, 0]]
    assert soft.diagonal(dim1=1, dim2=2)[0].tolist() == pytest.approx(
        [1 / 6, 1 / 2, 2 / 3, 0], abs=1 / 255
    )


# ----------------------------------------------------------------------------------- the dataset


@settings(max_examples=20)
@given(size=st.integers(1, 40).map(lambda quarter: 4 * quarter))
def test_any_multiple_of_4_is_a_size(tables, size):
    dataset = CarvanaDataset(tables[1].iloc[:2], size, cache=False)
    image, mask = dataset[1]
    assert image.shape == mask.shape == (1, size, size)
    assert image.dtype == mask.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert set(mask.unique().tolist()) <= {0, 1}


@given(size=st.integers(-8, 300).filter(lambda size: size < 4 or size % 4))
def test_any_other_size_is_refused(tables, size):
    with pytest.raises(ValueError, match=f"size={size} must be a multiple of 4"):
        CarvanaDataset(tables[1], size)


def test_each_item_is_the_image_and_mask_of_its_row(tables):
    dataset = CarvanaDataset(tables[0], 32)
    assert len(dataset) == 16
    row = tables[0].iloc[7]
    image, mask = dataset[7]
    assert torch.equal(image, to_tensor(load_image(row["image"], 32)))
    assert torch.equal(mask, (to_tensor(load_coverage(row["mask"], 32)) >= 0.5).float())


def test_rows_keep_their_pictures_whatever_the_index_of_the_table(tables):
    picked = tables[0].iloc[[9, 3]]
    dataset = CarvanaDataset(picked, 32)
    assert list(dataset.samples["id"]) == list(picked["id"])
    np.testing.assert_array_equal(dataset.images[0], load_image(picked["image"].iloc[0], 32))


def test_soft_masks_are_the_coverage(tables):
    dataset = CarvanaDataset(tables[1], 32, mask="soft")
    mask = dataset[0][1]
    assert torch.equal(mask, to_tensor(dataset.coverage[0]))
    full_size = load_mask(tables[1]["mask"][0])
    assert mask.mean().item() == pytest.approx(full_size.mean(), abs=0.005)


@pytest.mark.fault("empty table", "refused")
def test_a_table_without_rows_is_refused(tables):
    with pytest.raises(DataError, match="no rows"):
        CarvanaDataset(tables[0].iloc[:0])


@pytest.mark.fault("images without masks in training", "named")
def test_test_images_are_refused_by_name(samples):
    with pytest.raises(DataError, match=r"000000000005_01\.jpg: has no mask"):
        CarvanaDataset(samples)


@pytest.mark.fault("sample table that went through a csv file", "named, or read as before")
@pytest.mark.parametrize("absent", [None, float("nan")], ids=["None", "NaN"])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "not cached"])
def test_a_mask_that_is_missing_is_no_mask(samples, absent, cache):
    table = samples.astype({"mask": object})
    table.loc[table["mask"] == "", "mask"] = absent
    with pytest.raises(DataError, match=r"000000000005_01\.jpg: has no mask"):
        CarvanaDataset(table, 8, cache=cache)


@pytest.mark.fault("sample table without a column", "the column is named")
@pytest.mark.parametrize("column", ["id", "image", "mask"])
def test_a_table_without_a_column_is_refused(tables, column):
    with pytest.raises(DataError, match=f"has no column '{column}'"):
        CarvanaDataset(tables[1].drop(columns=column), 8)


@pytest.mark.parametrize("size", [np.int64(8), np.uint8(8)], ids=["int64", "uint8"])
def test_the_size_of_a_data_set_may_be_numpys(tables, size):
    dataset = CarvanaDataset(tables[1], size)
    assert dataset[0][0].shape == (1, 8, 8) and type(dataset.size) is int


@pytest.mark.parametrize("size", [8.0, "8", None, 250_002], ids=str)
def test_a_size_that_is_no_whole_number_is_refused(tables, size):
    with pytest.raises(ValueError, match=f"size={size} must be a multiple of 4"):
        CarvanaDataset(tables[1], size)


@pytest.mark.parametrize("setting", [{"mask": "fuzzy"}, {"augment": "wild"}])
def test_unknown_settings_are_refused(tables, setting):
    (value,) = setting.values()
    with pytest.raises(ValueError, match=value):
        CarvanaDataset(tables[0], 32, **setting)


# ---------------------------------------------------------------------------------- augmentation


def test_the_classic_bug_a_plain_mask_is_left_behind_without_a_word():
    """Why the dataset wraps its mask: v2 turns the image and silently not a plain tensor."""
    image, mask = torch.rand(1, 4, 6), torch.rand(1, 4, 6)
    flip = v2.RandomHorizontalFlip(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flipped, left_behind = flip(tv_tensors.Image(image), mask)
        _, moved = flip(tv_tensors.Image(image), tv_tensors.Mask(mask))
    assert torch.equal(flipped, image.flip(-1))
    assert torch.equal(left_behind, mask)
    assert torch.equal(moved, mask.flip(-1))


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_image_and_mask_are_flipped_together(tables, mask):
    plain = CarvanaDataset(tables[1], 32, mask)
    flipping = CarvanaDataset(tables[1], 32, mask, augment="flip")
    straight = torch.stack(plain[0])
    torch.manual_seed(0)
    draws = [torch.stack(flipping[0]) for _ in range(30)]
    turned = [torch.equal(draw, straight.flip(-1)) for draw in draws]
    unturned = [torch.equal(draw, straight) for draw in draws]
    assert [not turn for turn in turned] == unturned
    assert 5 < sum(turned) < 25


def test_mild_changes_the_light_of_the_image_and_never_the_mask(tables):
    plain = CarvanaDataset(tables[1], 32)
    mild = CarvanaDataset(tables[1], 32, augment="mild")
    mask = plain[0][1]
    torch.manual_seed(0)
    brightness = set()
    for _ in range(20):
        image, drawn = mild[0]
        assert image.min() >= 0 and image.max() <= 1
        assert torch.equal(drawn, mask) or torch.equal(drawn, mask.flip(-1))
        # The ellipse is the dark part: the drawn mask still lies on it.
        assert image[drawn == 1].mean() < image[drawn == 0].mean() - 0.1
        brightness.add(round(image.mean().item(), 2))
    assert len(brightness) > 5


def test_items_are_plain_tensors(tables):
    for item in CarvanaDataset(tables[1], 32, augment="mild")[0]:
        assert type(item) is torch.Tensor


def test_no_augmentation_is_none():
    assert augmentation("none") is None


def test_a_batch_is_augmented_as_v2_would_image_by_image():
    images = torch.rand(12, 1, 8, 10)
    masks = (torch.rand(12, 1, 8, 10) > 0.5).float()
    draws = torch.rand(12, 3)
    lit, turned = augment_batch(images, masks, "mild", draws)
    for row, (flip, brightness, contrast) in enumerate(draws.tolist()):
        image, mask = tv_tensors.Image(images[row]), tv_tensors.Mask(masks[row])
        if flip < 0.5:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image = F.adjust_brightness(image, 0.6 + 0.8 * brightness)
        image = F.adjust_contrast(image, 0.6 + 0.8 * contrast)
        assert torch.allclose(lit[row], image, atol=1e-6)
        assert torch.equal(turned[row], mask)
    assert 0 < (draws[:, 0] < 0.5).sum() < 12  # both kinds were seen


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_a_batch_holds_what_the_items_hold(tables, mask):
    dataset = CarvanaDataset(tables[1], 32, mask)
    images, masks = next(iter(make_loader(dataset, 3)))
    items = [dataset[row] for row in range(3)]
    assert torch.equal(images, torch.stack([image for image, _ in items]))
    assert torch.equal(masks, torch.stack([mask for _, mask in items]))


def test_a_plain_loader_gets_batches_too(tables):
    images, masks = next(iter(DataLoader(CarvanaDataset(tables[1], 32), batch_size=3)))
    assert images.shape == masks.shape == (3, 1, 32, 32)


def test_batches_are_flipped_as_one_with_their_masks(tables):
    plain, flipping = (CarvanaDataset(tables[1], 32, augment=name) for name in ("none", "flip"))
    straight = next(iter(make_loader(plain, 4)))
    flipping.set_epoch(0, 1)
    turned = flipping.draws[:, 0] < 0.5
    for before, after in zip(straight, next(iter(make_loader(flipping, 4))), strict=True):
        for row, turn in enumerate(turned[:4]):
            assert torch.equal(after[row], before[row].flip(-1) if turn else before[row])


def test_an_epoch_draws_the_same_for_an_image_in_whatever_batch(tables):
    dataset = CarvanaDataset(tables[0], 32, augment="mild")
    dataset.set_epoch(seed=1, epoch=2)
    together = dataset.__getitems__([3, 7, 5])
    alone = [dataset.__getitems__([row])[0] for row in (3, 7, 5)]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(torch.stack(one), torch.stack(other))
    dataset.set_epoch(seed=1, epoch=3)
    assert not torch.equal(dataset.__getitems__([3])[0][0], alone[0][0])


# -------------------------------------------------------------------------------------- the cache


def cache_files():
    return sorted(config.cache_dir().iterdir())


def rebuilds(capfd) -> bool:
    return "decoding" in capfd.readouterr().err


def test_pictures_are_decoded_once(tables, capfd):
    first = CarvanaDataset(tables[1], 32)
    assert rebuilds(capfd)
    again = CarvanaDataset(tables[1], 32, mask="soft", augment="flip")
    assert not rebuilds(capfd)
    np.testing.assert_array_equal(first.images, again.images)
    assert len(cache_files()) == 1


def test_the_cache_is_mapped_not_read(tables):
    CarvanaDataset(tables[1], 32)
    mapped = CarvanaDataset(tables[1], 32).images
    while not isinstance(mapped, np.memmap):
        mapped = mapped.base
        assert mapped is not None
    assert mapped.mode == "r"


def test_without_cache_the_pictures_are_the_same_and_no_file_is_written(tables):
    memory = CarvanaDataset(tables[1], 32, cache=False)
    assert cache_files() == []
    np.testing.assert_array_equal(memory.images, CarvanaDataset(tables[1], 32).images)


def test_another_size_has_a_cache_of_its_own(tables):
    CarvanaDataset(tables[1], 32)
    assert CarvanaDataset(tables[1], 16).images.shape == (4, 16, 16)
    assert len(cache_files()) == 2


@pytest.mark.fault("a picture or mask exchanged after it was cached", "decoded anew")
@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_a_changed_file_is_decoded_anew(own_data_set, folder):
    table = find_samples(own_data_set).iloc[:2]
    before = CarvanaDataset(table, 32)
    first, second = sorted((own_data_set / folder).iterdir())[:2]
    first.write_bytes(second.read_bytes())
    after = CarvanaDataset(table, 32)
    old, new = (
        (before.images, after.images) if folder == "train" else (before.coverage, after.coverage)
    )
    assert not np.array_equal(new[0], old[0])
    np.testing.assert_array_equal(new[0], old[1])


@pytest.mark.fault("the cache cut off", "built anew")
@pytest.mark.parametrize("kept", [0, 50, 2000])
def test_a_cut_off_cache_is_built_anew(tables, kept, capfd):
    expected = np.array(CarvanaDataset(tables[1], 32).images)
    (path,) = cache_files()
    path.write_bytes(path.read_bytes()[:kept])
    capfd.readouterr()
    np.testing.assert_array_equal(CarvanaDataset(tables[1], 32).images, expected)
    assert rebuilds(capfd)
    assert len(cache_files()) == 1


BUILD = """
import hashlib, sys
from unetlib.carvana import find_samples
from unetlib.dataset import CarvanaDataset
samples = find_samples()
samples = samples[samples["mask"] != ""]
print("ready", flush=True)
sys.stdin.readline()
dataset = CarvanaDataset(samples, 64)
print(hashlib.sha256(dataset.images.tobytes() + dataset.coverage.tobytes()).hexdigest())
"""


@pytest.mark.fault(
    "two programs build one cache at once", "both get the right images; one whole file is left"
)
def test_two_processes_that_build_the_cache_at_once_are_both_right(samples):
    import hashlib

    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            cwd=config.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    for builder in builders:
        assert builder.stdout.readline() == "ready\n"
    built = [""] * 2

    def build(number: int) -> None:
        built[number] = builders[number].communicate("go\n")[0].strip()

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = CarvanaDataset(samples[samples["mask"] != ""], 64, cache=False)
    content = expected.images.tobytes() + expected.coverage.tobytes()
    assert built == [hashlib.sha256(content).hexdigest()] * 2
    assert [path.suffix for path in cache_files()] == [".bin"]


# ------------------------------------------------------------------------------------ the loader


def order(loader) -> list[float]:
    return [round(image.mean().item(), 6) for images, _ in loader for image in images]


def test_batches_cover_every_image_once_and_the_last_is_smaller(tables):
    dataset = CarvanaDataset(tables[0], 32)
    batches = [images.shape for images, _ in make_loader(dataset, 5)]
    assert batches == [(5, 1, 32, 32)] * 3 + [(1, 1, 32, 32)]
    assert sorted(order(make_loader(dataset, 5, shuffle=True))) == sorted(
        order(make_loader(dataset, 5))
    )


def test_the_order_is_a_function_of_seed_and_epoch(tables):
    dataset = CarvanaDataset(tables[0], 32)
    torch.manual_seed(1)
    first = order(make_loader(dataset, 4, True, seed=1, epoch=2))
    torch.manual_seed(2)
    assert order(make_loader(dataset, 4, True, seed=1, epoch=2)) == first
    assert order(make_loader(dataset, 4, True, seed=1, epoch=3)) != first
    assert order(make_loader(dataset, 4, True, seed=2, epoch=2)) != first


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_every_batch_out(tables, processes):
    """16 images in batches of 5: the last batch of one leaves most processes without a share."""
    dataset = CarvanaDataset(tables[0], 32)
    whole = [batch for batch, _ in make_loader(dataset, 5, True, seed=3, epoch=1)]
    loaders = [
        make_loader(dataset, 5, True, seed=3, epoch=1, process=process, processes=processes)
        for process in range(processes)
    ]
    for batch, *shares in zip(whole, *loaders, strict=True):
        for process, (share, _) in enumerate(shares):
            own = batch[process::processes]
            assert torch.equal(share, own if len(own) else batch[:1])


def test_parts_are_the_rows_dealt_out(tables):
    dataset = CarvanaDataset(tables[0], 32)
    parts = [dataset.part(process, 3) for process in range(3)]
    assert [len(part) for part in parts] == [6, 5, 5]
    assert list(parts[1].samples["id"]) == list(dataset.samples["id"][1::3])
    np.testing.assert_array_equal(parts[2].coverage, dataset.coverage[2::3])


def test_to_tensor_adds_the_channel_and_scales():
    tensor = to_tensor(np.array([[0, 51], [102, 255]], np.uint8))
    assert tensor.shape == (1, 2, 2)
    assert tensor.flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    assert to_tensor(np.zeros((5, 2, 2), np.uint8)).shape == (5, 1, 2, 2)
