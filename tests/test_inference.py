import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unetlib import (
    FILES,
    CarvanaDataset,
    DataError,
    ModelFileError,
    dataset_logits,
    enlarge,
    load_image,
    load_model,
    load_predictor,
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
    small = torch.sigmoid(dataset_logits(trained.model().cpu(), dataset))[:, 0].numpy()
    for image, one in zip(tables[1]["image"], small, strict=True):
        enlarged = Image.fromarray(one).resize((60, 40), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(predictor.predict_proba(image), enlarged, atol=1e-5)


def test_thresholding_comes_last(predictor, photo):
    """A mask enlarged after thresholding would be a staircase of blocks."""
    probability = predictor.predict_proba(photo)
    mask = predictor.predict_mask(photo)
    np.testing.assert_array_equal(mask, probability > 0.5)
    assert len(np.unique(probability)) > 32 * 32


def test_the_threshold_is_a_choice(predictor, photo):
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


def test_several_images_may_come_as_a_list_or_column(predictor, data_set):
    paths = sorted((data_set / "test").iterdir())
    expected = predictor.predict_mask(paths)
    column = pd.Series(map(str, paths))
    for images in (tuple(paths), column, column.astype(object)):
        np.testing.assert_array_equal(predictor.predict_mask(images), expected)
    for images in (np.array(paths), column.to_numpy(), (path for path in paths)):
        with pytest.raises(DataError):
            predictor.predict_mask(images)
    with open(paths[0], "rb") as file:
        np.testing.assert_array_equal(predictor.predict_mask(file), expected[0])


@pytest.mark.fault("tensors of a data set given to the predictor", "refused, and named")
def test_what_is_no_image_is_refused(predictor, tables):
    image, mask = CarvanaDataset(tables[1], 32)[0]
    for thing in (image, (image, mask), {tables[1]["image"][0]}, tables[1]):
        with pytest.raises(DataError):
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
    with pytest.raises(ModelFileError, match=r"model\.onnx.*python -m unetlib export"):
        load_predictor(tmp_path / "model.onnx")


def test_a_runs_checkpoint_is_a_model_file_too(trained, photo):
    assert load_predictor(trained.checkpoint).predict_mask(photo).any()


# ------------------------------------------------------------------------------------- options


def test_the_size_of_the_result_is_a_choice(predictor, photo):
    small = predictor.predict_proba(photo, size="model")
    assert small.shape == (32, 32)
    np.testing.assert_array_equal(predictor.predict_proba(photo), enlarge(small, (40, 60)))
    assert predictor.predict_proba(photo, size=(20, 30)).shape == (20, 30)
    assert predictor.predict_proba(photo, size=np.int64(20)).shape == (20, 20)
    assert predictor.predict_mask(photo, size=(20, 30)).dtype == bool


@pytest.mark.parametrize("size", ["huge", 0, (4.5, 4), (4, 0)], ids=str)
def test_an_impossible_size_is_refused(predictor, photo, size):
    with pytest.raises(ValueError, match="size="):
        predictor.predict_proba(photo, size=size)


def test_flipping_is_the_mean_with_the_mirrored_picture(predictor, photo):
    with Image.open(photo) as opened:
        picture = opened.convert("L").resize((64, 32))  # shrinks alike from either side
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mean = (predictor.predict_proba(picture) + predictor.predict_proba(mirrored)[:, ::-1]) / 2
    np.testing.assert_allclose(predictor.predict_proba(picture, flip=True), mean, atol=1e-5)
    assert np.abs(mean - predictor.predict_proba(picture)).max() > 1e-3


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "CMYK", "P", "1"])
def test_an_image_of_any_mode_is_seen_as_the_data_set_sees_it(predictor, photo, tmp_path, mode):
    """A path bit for bit; an opened image or an array within a grey level on average."""
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    path = tmp_path / ("p.jpg" if mode in ("RGB", "L", "CMYK") else "p.png")
    picture.save(path)
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


def test_a_map_is_enlarged_bilinearly_to_height_and_width():
    small = np.float32([[0, 1]])
    assert enlarge(small, (3, 8)).shape == (3, 8)
    assert enlarge(small, [1, 2]) is small
    assert (np.diff(enlarge(small, (1, 8))) >= 0).all()


def test_the_raw_model_gives_logits_not_probabilities(predictor, photo):
    batch = torch.from_numpy(load_image(photo, 32)[None, None].astype(np.float32) / 255).numpy()
    logits = predictor.logits(batch)
    assert logits.shape == (1, 1, 32, 32)
    assert logits.min() < -1
