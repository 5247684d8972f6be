import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from unetlib.__GONE__ import rle_of_map

from unetlib import (
    FILES,
    CarvanaDataset,
    DataError,
    ModelFileError,
    UNet,
    enlarge,
    export_onnx,
    load_image,
    load_model,
    load_predictor,
    predict_dataset,
    rle_encode,
    save_model,
)


@pytest.fixture
def photo(tables):
    return tables[1]["image"][0]


@pytest.mark.parametrize("name", FILES)
def test_every_format_predicts_at_the_original_size(exported, photo, name):
    predictor = load_predictor(exported[0] / FILES[name])
    probability, mask = predictor.predict_proba(photo), predictor.predict_mask(photo)
    assert (probability.shape, probability.dtype) == ((40, 60), np.float32)
    assert (mask.shape, mask.dtype) == ((40, 60), bool)
    assert probability.min() >= 0 and probability.max() <= 1
    assert predictor.format == name and predictor.size == 32
    assert predictor.name == ("int8" if name == "int8" else f"{name} fp32")


def test_a_path_an_image_and_an_array_are_predicted_alike(predictor, photo):
    with Image.open(photo) as opened:
        opened.load()
    for same in (opened, np.asarray(opened)):
        np.testing.assert_allclose(
            predictor.predict_proba(same), predictor.predict_proba(photo), atol=0.05
        )


def test_the_predictor_sees_what_the_dataset_shows(predictor, trained, tables):
    """Its probabilities are the data set's, enlarged bilinearly."""
    dataset = CarvanaDataset(tables[1], 32)
    small = predict_dataset(trained.model(), dataset)
    for image, one in zip(tables[1]["image"], small, strict=True):
        enlarged = Image.fromarray(one).resize((60, 40), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(predictor.predict_proba(image), enlarged, atol=1e-5)


def test_thresholding_comes_last(predictor, photo):
    """A mask enlarged after thresholding would be a staircase of blocks."""
    probability = predictor.predict_proba(photo)
    mask = predictor.predict_mask(photo)
    np.testing.assert_array_equal(mask, probability > 0.5)
    assert len(np.unique(probability)) > 32 * 32


def test_a_threshold_of_ones_own(predictor, photo):
    probability = predictor.predict_proba(photo)
    np.testing.assert_array_equal(predictor.predict_mask(photo, threshold=0.9), probability > 0.9)
    assert predictor.predict_mask(photo, threshold=0.0).all()


def test_the_files_threshold_is_the_default(trained, tmp_path, photo):
    model, _ = load_model(trained.checkpoint)
    save_model(tmp_path / "bold.pth", model, 32, threshold=0.1)
    bold = load_predictor(tmp_path / "bold.pth")
    np.testing.assert_array_equal(bold.predict_mask(photo), bold.predict_proba(photo) > 0.1)


def test_a_list_in_gives_a_list_out_in_order(predictor, tables):
    images = [*tables[0]["image"], *tables[1]["image"]]  # more than one batch
    together = predictor.predict_proba(images)
    assert isinstance(together, list) and len(together) == 20
    for index in (0, 7, 19):
        np.testing.assert_allclose(
            together[index], predictor.predict_proba(images[index]), atol=1e-5
        )
    assert [mask.dtype for mask in predictor.predict_mask(images[:2])] == [bool, bool]


def test_images_of_different_sizes_go_together(predictor, photo):
    small = Image.new("RGB", (17, 9))
    assert [one.shape for one in predictor.predict_proba([photo, small])] == [(40, 60), (9, 17)]


def test_several_images_may_come_as_any_column_or_iterator(predictor, tables, data_set):
    paths = sorted((data_set / "test").iterdir())
    expected = predictor.predict_mask(paths)
    column = pd.Series(map(str, paths))
    several = [
        (path for path in paths),
        np.array(paths),
        np.array(list(column)),
        column.values,
        column.astype(object).values,
        pd.Index(column),
    ]
    for images in several:
        np.testing.assert_array_equal(predictor.predict_mask(images), expected)
    with open(paths[0], "rb") as file:  # an iterator, too
        np.testing.assert_array_equal(predictor.predict_mask(file), expected[0])


@pytest.mark.fault("tensors of a data set given to the predictor", "refused, with what is taken")
def test_what_is_no_image_is_refused(predictor, tables):
    image, mask = CarvanaDataset(tables[1], 32)[0]
    for thing in (image, (image, mask), {tables[1]["image"][0]}, tables[1]):
        with pytest.raises(DataError, match="give a path, a file, a PIL image or an array"):
            predictor.predict_proba(thing)


def test_an_empty_list_gives_an_empty_list(predictor):
    assert predictor.predict_mask([]) == []


def test_a_photo_held_sideways_is_predicted_upright(predictor, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as opened:
        turned = opened.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    found = predictor.predict_proba(tmp_path / "turned.jpg")
    np.testing.assert_allclose(found, predictor.predict_proba(photo), atol=0.25)
    assert np.abs(found - predictor.predict_proba(photo)).mean() < 0.02


def test_an_unreadable_image_is_named(predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        predictor.predict_proba(tmp_path / "broken.jpg")


def test_a_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelFileError, match="no such file; export a model first"):
        load_predictor(tmp_path / "model.onnx")


def test_a_runs_checkpoint_is_a_model_file_too(trained, photo):
    assert load_predictor(trained.checkpoint).predict_mask(photo).any()


# ------------------------------------------------------------------------------------- options


def test_the_size_of_the_result_is_a_choice(predictor, photo):
    small = predictor.predict_proba(photo, size="model")
    assert small.shape == (32, 32)
    np.testing.assert_array_equal(predictor.predict_proba(photo), enlarge(small, (60, 40)))
    assert predictor.predict_proba(photo, size=(20, 30)).shape == (20, 30)
    assert predictor.predict_proba(photo, size=np.int64(20)).shape == (20, 20)
    assert predictor.predict_mask(photo, size=(20, 30)).dtype == bool


def test_a_size_that_is_none_is_refused(predictor, photo):
    with pytest.raises(ValueError, match="size='huge': give 'original', 'model' or"):
        predictor.predict_proba(photo, size="huge")
    for size in (0, (4.5, 4), (4, 0)):
        with pytest.raises(ValueError, match="give one or two whole numbers above 0"):
            predictor.predict_proba(photo, size=size)


def test_flipping_is_the_mean_with_the_mirrored_picture(predictor, photo):
    with Image.open(photo) as opened:
        picture = opened.convert("L").resize((64, 32))  # shrinks alike from either side
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mean = (predictor.predict_proba(picture) + predictor.predict_proba(mirrored)[:, ::-1]) / 2
    np.testing.assert_allclose(predictor.predict_proba(picture, flip=True), mean, atol=1e-5)
    assert np.abs(mean - predictor.predict_proba(picture)).max() > 1e-3


@pytest.fixture(scope="module")
def large():
    """A picture of 150x90 pixels with structure everywhere."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 150), dtype=np.uint8))


def test_one_tile_that_holds_the_picture_is_the_network_on_the_whole_picture(predictor, large):
    padded = np.pad(np.asarray(large), ((0, 6), (0, 10)), mode="edge")
    whole = predictor.predict_maps(padded[None])[0, :90, :150]
    np.testing.assert_allclose(predictor.predict_proba(large, tile=160), whole, atol=1e-6)


@pytest.mark.parametrize("tile", [32, 48, 96])
def test_overlapping_tiles_cover_the_picture_without_seams(predictor, large, tile):
    """Away from its border, a window predicts what the whole picture would."""
    whole = predictor.predict_proba(large, tile=160)
    tiled = predictor.predict_proba(large, tile=tile)
    assert tiled.shape == (90, 150) and np.isfinite(tiled).all()
    assert np.abs(tiled - whole).mean() < 0.1
    if tile == 96:  # the windows' halves that count most lie deeper than the receptive field
        assert np.abs(tiled - whole).mean() < 0.03


def test_a_tile_of_an_odd_size_is_refused(predictor, photo):
    with pytest.raises(ValueError, match="tile=30 must be a multiple of 16"):
        predictor.predict_proba(photo, tile=30)


@pytest.mark.parametrize("kind", ["pytorch", "onnx"])
def test_a_deeper_network_takes_larger_tiles(tmp_path, large, kind):
    model, path = UNet(widths=(2,) * 6).eval(), tmp_path / FILES[kind]
    if kind == "onnx":
        export_onnx(model, path, 64)
    else:
        save_model(path, model, 64)
    deep = load_predictor(path, "cpu")
    with pytest.raises(ValueError, match="tile=48 must be a multiple of 64, for example 512"):
        deep.predict_proba(large, tile=48)
    for tile in (64, 512):  # 90 and 70 pixels are filled up to 128
        assert deep.predict_proba(large.crop((0, 0, 90, 70)), tile=tile).shape == (70, 90)


def _write(picture: Image.Image, path):
    picture.save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "CMYK", "P", "1"])
def test_an_image_of_any_mode_is_seen_as_the_data_set_sees_it(predictor, photo, tmp_path, mode):
    """A path bit for bit; an opened image or an array within a grey level on average."""
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    path = _write(picture, tmp_path / ("p.jpg" if mode in ("RGB", "L", "CMYK") else "p.png"))
    seen = load_image(path, 32)
    expected = predictor.predict_maps(seen[None])[0]
    np.testing.assert_array_equal(predictor.predict_proba(path, size="model"), expected)
    with Image.open(path) as opened:
        opened.load()
    given = [opened]
    if mode in ("RGB", "L", "RGBA", "I;16"):
        given.append(np.asarray(opened))
    for same in given:
        assert np.abs(load_image(same, 32).astype(int) - seen).mean() <= 1
        assert predictor.predict_proba(same).shape == (40, 60)


def test_threads_are_a_choice_and_leave_pytorch_as_it_was(exported, photo):
    before = torch.get_num_threads()
    for name in ("pytorch", "onnx"):
        one, two = (load_predictor(exported[0] / FILES[name], "cpu", threads=n) for n in (1, 2))
        np.testing.assert_allclose(one.predict_proba(photo), two.predict_proba(photo), atol=1e-5)
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------- runs straight from the map


sides = st.integers(1, 40)


@given(sides, sides, st.integers(1, 120), st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_the_code_of_a_small_map_is_the_code_of_the_enlarged_one(h, w, height, width, seed):
    rng = np.random.default_rng(seed)
    small = rng.random((h, w), dtype=np.float32)
    if seed % 2:
        small = np.round(small * 4) / 4  # many pixels exactly on the threshold
    for threshold in (0.5, 0.3):
        naive = rle_encode(enlarge(small, (width, height)) > threshold)
        assert rle_of_map(small, (width, height), threshold) == naive


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_map_of_one_value(value):
    small = np.full((8, 8), value, np.float32)
    assert rle_of_map(small, (1918, 1280)) == (f"1 {1918 * 1280}" if value > 0.5 else "")


def test_the_raw_model_gives_logits_not_probabilities(predictor, photo):
    batch = torch.from_numpy(load_image(photo, 32)[None, None].astype(np.float32) / 255).numpy()
    logits = predictor.logits(batch)
    assert logits.shape == (1, 1, 32, 32)
    assert logits.min() < -1
