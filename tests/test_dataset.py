import pickle
import random
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unetlib import (
    CarvanaDataset,
    DataError,
    find_samples,
    load_coverage,
    load_image,
    load_mask,
    make_loader,
    to_tensor,
)
from unetlib.dataset import AUGMENTATIONS, decode, mild

# ----------------------------------------------------------------------------------- the dataset


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


@settings(max_examples=20)
@given(size=st.integers(1, 40).map(lambda quarter: 4 * quarter))
def test_any_multiple_of_4_is_a_size(tables, size):
    dataset = CarvanaDataset(tables[1].iloc[:2], size)
    image, mask = dataset[1]
    assert image.shape == mask.shape == (1, size, size)
    assert image.dtype == mask.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert set(mask.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("size", [0, -8, (8, 0), (8, 8, 8)], ids=str)
def test_a_size_without_pixels_is_refused(tables, size):
    with pytest.raises(ValueError, match=re.escape(f"size={size}")):
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
    with pytest.raises(DataError):
        CarvanaDataset(tables[0].iloc[:0])


@pytest.mark.fault("images without masks in training", "named")
def test_test_images_are_refused_by_name(samples):
    with pytest.raises(DataError, match=r"000000000005_01\.jpg"):
        CarvanaDataset(samples)


@pytest.mark.fault("sample table that went through a csv file", "named, or read as before")
@pytest.mark.parametrize("absent", [None, float("nan")], ids=["None", "NaN"])
def test_a_mask_that_is_missing_is_no_mask(samples, absent):
    table = samples.astype({"mask": object})
    table.loc[table["mask"] == "", "mask"] = absent
    with pytest.raises(DataError, match=r"000000000005_01\.jpg"):
        CarvanaDataset(table, 8)


@pytest.mark.fault("sample table without a column", "the column is named")
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_table_without_a_column_is_refused(tables, column):
    with pytest.raises(KeyError, match=column):
        CarvanaDataset(tables[1].drop(columns=column), 8)


@pytest.mark.fault("a picture that cannot be read while images are decoded", "named")
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_file_that_cannot_be_decoded_is_named(tables, tmp_path, column):
    (tmp_path / "broken.gif").write_bytes(b"no picture")
    table = tables[1].copy()
    table.loc[2, column] = str(tmp_path / "broken.gif")
    with pytest.raises(DataError, match=r"broken\.gif"):
        CarvanaDataset(table, 8)


@pytest.mark.parametrize("size", [np.int64(8), np.uint8(8)], ids=["int64", "uint8"])
def test_the_size_of_a_data_set_may_be_numpys(tables, size):
    dataset = CarvanaDataset(tables[1], size)
    assert dataset[0][0].shape == (1, 8, 8) and type(dataset.size) is int


@pytest.mark.parametrize("size", [8.0, "8", None], ids=str)
def test_a_size_that_is_no_integer_is_refused(tables, size):
    with pytest.raises(ValueError, match="size="):
        CarvanaDataset(tables[1], size)


def test_height_and_width_and_colour(tables):
    dataset = CarvanaDataset(tables[1], (8, 12), colour=True)
    image, mask = dataset[2]
    assert image.shape == (3, 8, 12) and mask.shape == (1, 8, 12)
    assert dataset.images.shape == (len(tables[1]), 8, 12, 3)
    with Image.open(tables[1]["image"][2]) as opened:
        small = np.asarray(opened.resize((12, 8), Image.Resampling.BOX))
    np.testing.assert_allclose(dataset.images[2], small, atol=1)
    assert torch.equal(image, to_tensor(dataset.images[2]))


def test_another_decode_function_is_called_with_the_table_and_the_size(tables):
    called = []

    def brighter(samples, size, colour):
        called.append((list(samples["id"]), size))
        return decode(samples, size) // 2 + 128

    dataset = CarvanaDataset(tables[1], 16, decode=brighter)
    assert called == [(list(tables[1]["id"]), 16)]
    assert dataset.images.min() >= 128


@pytest.mark.parametrize("setting", [{"mask": "fuzzy"}, {"augment": "wild"}])
def test_unknown_settings_are_refused(tables, setting):
    (value,) = setting.values()
    with pytest.raises(ValueError, match=value):
        CarvanaDataset(tables[0], 32, **setting)


# ---------------------------------------------------------------------------------- augmentation


def test_the_classic_bug_a_plain_mask_is_left_behind_without_a_word():
    """What notebook 02 shows: v2 turns the image and silently not a plain tensor."""
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


@pytest.mark.parametrize("channels", [1, 3])
def test_backgrounds_change_half_of_the_pictures_and_never_the_object(channels, monkeypatch):
    monkeypatch.setattr("unetlib.dataset.mild", lambda images, masks: (images, masks))
    images = torch.rand(64, channels, 24, 32)
    masks = torch.zeros(64, 1, 24, 32)
    masks[:, :, 6:18, 8:24] = 1
    torch.manual_seed(0)
    changed, same = AUGMENTATIONS["backgrounds"](images, masks)
    assert torch.equal(same, masks) and changed.min() >= 0 and changed.max() <= 1
    inside = masks.bool().expand_as(images)
    assert torch.equal(changed[inside], images[inside])
    ground = (changed != images).flatten(1).sum(1) / (~inside).flatten(1).sum(1)
    assert {round(share) for share in ground.tolist()} == {0, 1} and 20 < (ground > 0.9).sum() < 44
    # A wall and a floor, smooth but for where they meet.
    (rows, *_) = torch.where(ground > 0.9)
    steps = changed[rows, 0, :, 0].diff(dim=1).abs()
    assert (steps > 0.1).sum(1).max() <= 1 and (steps > 0.1).any()


def test_items_are_plain_tensors(tables):
    for item in CarvanaDataset(tables[1], 32, augment="mild")[0]:
        assert type(item) is torch.Tensor


def test_a_batch_is_augmented_as_v2_would_image_by_image():
    images = torch.rand(12, 1, 8, 10)
    masks = (torch.rand(12, 1, 8, 10) > 0.5).float()
    draws = torch.rand(12, 3)
    lit, turned = mild(images, masks, draws)
    for row, (flip, brightness, contrast) in enumerate(draws.tolist()):
        image, mask = tv_tensors.Image(images[row]), tv_tensors.Mask(masks[row])
        if flip < 0.5:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image = F.adjust_brightness(image, 0.6 + 0.8 * brightness)
        image = F.adjust_contrast(image, 0.6 + 0.8 * contrast)
        assert torch.allclose(lit[row], image, atol=1e-6)
        assert torch.equal(turned[row], mask)
    assert 0 < (draws[:, 0] < 0.5).sum() < 12  # both kinds were seen


def move(images, masks):
    """An own augmentation: each pair is rolled by numbers from all three libraries."""
    rows = [random.randrange(8), np.random.randint(8), int(torch.randint(8, ()))]
    noise = 0.01 * torch.rand_like(images)
    return (images + noise).roll(rows, (2, 3, 2)).clamp(0, 1), masks.roll(rows, (2, 3, 2))


OWN = {
    "mild": "mild",
    "backgrounds": "backgrounds",
    "function": move,
    "v2": v2.RandomAffine(20, translate=(0.2, 0.2)),
    "several v2": v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.4)]),
}


@pytest.fixture(params=OWN.values(), ids=OWN.keys())
def moving(request, tables):
    return CarvanaDataset(tables[1], 32, augment=request.param)


def stacked(pairs) -> torch.Tensor:
    return torch.stack([torch.stack(pair) for pair in pairs])


def test_an_epoch_repeats_whatever_else_draws_random_numbers(moving):
    moving.epoch = (0, 1)
    first = stacked(moving.__getitems__([0, 3, 2]))
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(stacked(moving.__getitems__([0, 3, 2])), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    for other in ((1, 1), (0, 2)):
        moving.epoch = other
        assert not torch.equal(stacked(moving.__getitems__([0, 3, 2])), first)


def test_without_an_epoch_every_draw_is_new(moving):
    assert len({tuple(moving[0][0].flatten().tolist()) for _ in range(8)}) > 1


def test_an_item_and_a_batch_are_augmented_alike(moving, tables):
    """What dataset[i] shows is what fit trains with: the batch of this one image."""
    moving.epoch = (0, 1)
    (alone,) = next(iter(make_loader(moving, 1)))[0]
    assert torch.equal(moving[0][0], alone)
    assert not torch.equal(alone, CarvanaDataset(tables[1], 32)[0][0])


def test_an_image_is_transformed_alike_in_whatever_batch(tables):
    dataset = CarvanaDataset(tables[1], 32, augment=OWN["v2"])
    dataset.epoch = (1, 2)
    alone = [dataset[row] for row in (3, 2)]
    assert torch.equal(stacked(dataset.__getitems__([3, 0, 2]))[[0, 2]], stacked(alone))


def test_a_batch_is_the_same_from_bytes_that_are_kept_elsewhere(moving):
    """As on a GPU, where the pictures stay and are indexed."""
    moving.epoch, rows = (0, 1), torch.tensor([1, 0, 3])
    stored = [torch.from_numpy(one)[rows] for one in (moving.images, moving.coverage)]
    for one, other in zip(moving.batch([1, 0, 3], stored), moving.batch([1, 0, 3]), strict=True):
        assert torch.equal(one, other)


def test_v2_moves_image_and_mask_alike(tables):
    dataset = CarvanaDataset(tables[1], 32, augment=v2.RandomHorizontalFlip(1.0))
    plain = CarvanaDataset(tables[1], 32)
    assert torch.equal(stacked([dataset[0]]), stacked([plain[0]]).flip(-1))
    assert type(dataset[0][1]) is torch.Tensor


def test_an_augmentation_may_be_registered(tables, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "dark", lambda images, masks: (images / 2, masks))
    dark, plain = CarvanaDataset(tables[1], 8, augment="dark"), CarvanaDataset(tables[1], 8)
    assert torch.equal(dark[1][0], plain[1][0] / 2)


@pytest.mark.fault("an augmentation that gives masks of 0 to 255, or nan", "refused, and named")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, masks: (images, 255 * masks),
        lambda images, masks: (images, masks - 0.1),
        lambda images, masks: (images, masks / 0),
    ],
    ids=["255", "below 0", "nan"],
)
def test_an_augmentation_must_keep_masks_in_range(tables, wrong):
    with pytest.raises(ValueError, match="augment="):
        CarvanaDataset(tables[1], 8, augment=wrong)[0]


def test_an_augmentation_may_normalise_images(tables):
    def normalised(images, masks):
        return (images - 0.5) / 0.1, masks

    image, _ = CarvanaDataset(tables[1], 8, augment=normalised)[0]
    assert image.min() < -1


@pytest.mark.parametrize("name", ["flip", "mild", "backgrounds"])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_augmented_images_keep_their_type_whatever_the_default_is(tables, name, kind):
    dataset = CarvanaDataset(tables[1], 8, augment=name)
    torch.set_default_dtype(kind)
    try:
        items = [dataset[0]]
        dataset.epoch = (0, 1)
        items += [dataset[0], AUGMENTATIONS[name](*(part[None] for part in items[0]))]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {part.dtype for item in items for part in item} == {torch.float32}


@pytest.mark.fault("an augmentation that changes size, channels or type", "refused, and named")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, masks: (images[..., :4, :], masks[..., :4, :]),
        lambda images, masks: (images, masks > 0.5),
        lambda images, masks: (images.repeat(1, 3, 1, 1), masks),
        v2.Resize((4, 4)),
    ],
    ids=["size", "type", "channels", "v2"],
)
def test_an_augmentation_must_keep_shapes_and_types(tables, wrong):
    with pytest.raises(ValueError, match="augment="):
        CarvanaDataset(tables[1], 8, augment=wrong)[0]


def test_a_plain_loader_gets_batches_too(tables):
    images, masks = next(iter(DataLoader(CarvanaDataset(tables[1], 32), batch_size=3)))
    assert images.shape == masks.shape == (3, 1, 32, 32)


# --------------------------------------------------------------------------- worker processes


def stamped(images, masks):
    """Three random numbers in the first three pixels of each image."""
    drawn = [random.random(), np.random.random(), torch.rand(()).item()]
    return images.flatten(1).index_fill(1, torch.arange(3), 0).index_add(
        1, torch.arange(3), torch.tensor(drawn).expand(len(images), 3)
    ).view_as(images), masks


def epochs_of_workers(dataset, context: str, set_epoch: bool) -> list[list[tuple]]:
    """What two persistent workers draw for two batches each, in three epochs."""
    settings = dict(num_workers=2, persistent_workers=True, multiprocessing_context=context)
    loader, found = DataLoader(dataset, batch_size=2, **settings), []
    for epoch in range(3):
        if set_epoch:
            dataset.epoch = (7, epoch)
        found.append([tuple(images[0].flatten()[:3].tolist()) for images, _ in loader])
    return found


@pytest.mark.parametrize("context", ["fork", "forkserver"])  # spawn hands over like forkserver
def test_an_epoch_set_later_reaches_workers_that_run_already(tables, context):
    dataset = CarvanaDataset(tables[0].iloc[:8], 8, augment=stamped)
    found = epochs_of_workers(dataset, context, set_epoch=True)
    for epoch in range(3):
        dataset.epoch = (7, epoch)
        batches = DataLoader(dataset, batch_size=2)  # in this process
        assert found[epoch] == [tuple(images[0].flatten()[:3].tolist()) for images, _ in batches]
    assert len({batch for epoch in found for batch in epoch}) == 12


def test_without_an_epoch_workers_draw_other_numbers_than_each_other_and_before(tables):
    dataset = CarvanaDataset(tables[0].iloc[:8], 8, augment=stamped)
    assert dataset.epoch is None
    found = epochs_of_workers(dataset, "fork", set_epoch=False)
    batches = [batch for epoch in found for batch in epoch]
    for library in zip(*batches, strict=True):
        assert len(set(library)) == len(batches) == 12


def test_an_epoch_is_kept_as_it_was_set_and_can_be_taken_back(tables):
    one, other = (CarvanaDataset(tables[1], 8) for _ in range(2))
    one.epoch = (10**14, 3)
    assert one.epoch == (10**14, 3) and other.epoch is None
    copied = pickle.loads(pickle.dumps(one))
    one.epoch = None
    assert one.epoch is None and copied.epoch == (10**14, 3)


def test_a_data_set_can_be_handed_to_another_process_whatever_its_augmentation(moving):
    moving.epoch = (0, 1)
    copied = pickle.loads(pickle.dumps(moving))
    assert torch.equal(stacked([copied[1]]), stacked([moving[1]]))


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


def test_to_tensor_adds_the_channel_and_scales():
    tensor = to_tensor(np.array([[0, 51], [102, 255]], np.uint8))
    assert tensor.shape == (1, 2, 2)
    assert tensor.flatten().tolist() == pytest.approx([0, 0.2, 0.4, 1])
    assert to_tensor(np.zeros((5, 2, 2), np.uint8)).shape == (5, 1, 2, 2)
