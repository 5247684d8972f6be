import csv

import numpy as np
import pytest
import torch
from PIL import Image

from unetlib.carvana import DataError, rle_decode
from unetlib.dataset import CarvanaDataset, load_image
from unetlib.formats import FILES
from unetlib.inference import (
    benchmark,
    compare,
    image_files,
    load_predictor,
    peak_memory_mb,
    write_masks,
    write_submission,
)
from unetlib.metrics import predict_dataset
from unetlib.model import ModelFileError, load_model, save_model


@pytest.fixture(scope="session")
def predictor(exported):
    return load_predictor(exported[0] / FILES["pytorch"], device="cpu")


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


# ----------------------------------------------------------------------------------- many images


def test_folders_and_files_become_a_list_of_images(data_set, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("L", (4, 4)).save(tmp_path / "b.PNG")
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    test_images = sorted((data_set / "test").iterdir())
    assert image_files([tmp_path, test_images[2]]) == [
        tmp_path / "a.jpg",
        tmp_path / "b.PNG",
        test_images[2],
    ]


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        image_files([tmp_path / "nowhere"])


def test_no_image_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="No image found"):
        image_files([tmp_path])


def test_masks_are_written_as_black_and_white_files_of_the_original_size(
    predictor, data_set, tmp_path
):
    images = image_files([data_set / "test"])
    assert write_masks(predictor, images, tmp_path / "masks") == 4
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert names == {f"{image.stem}_mask.png" for image in images}
    with Image.open(tmp_path / "masks" / f"{images[0].stem}_mask.png") as opened:
        written = np.asarray(opened.convert("L"))
    np.testing.assert_array_equal(written, predictor.predict_mask(images[0]) * 255)


def test_the_submission_decodes_to_the_predicted_masks(predictor, data_set, tmp_path):
    images = image_files([data_set / "test"])
    assert write_submission(predictor, images, tmp_path / "sub" / "submission.csv") == 4
    with open(tmp_path / "sub" / "submission.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["img"] for row in rows] == [image.name for image in images]
    for image, row in zip(images, rows, strict=True):
        mask = rle_decode(row["rle_mask"], 40, 60)
        np.testing.assert_array_equal(mask, predictor.predict_mask(image))
        assert mask.any()


def test_a_submission_appears_whole_or_not_at_all(predictor, data_set, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [*image_files([data_set / "test"]), tmp_path / "broken.jpg"]
    with pytest.raises(DataError):
        write_submission(predictor, images, tmp_path / "out" / "submission.csv")
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------- comparing


def test_the_benchmark_has_a_row_per_model_and_batch_size(exported):
    predictors = [load_predictor(exported[0] / FILES[name]) for name in ("pytorch", "onnx")]
    table = benchmark(predictors, batch_sizes=(1, 3), repeats=4, warm_up=1)
    assert list(zip(table["name"], table["batch"], strict=True)) == [
        ("pytorch fp32", 1),
        ("onnx fp32", 1),
        ("pytorch fp32", 3),
        ("onnx fp32", 3),
    ]
    assert (table["p95_ms"] >= table["p50_ms"]).all() and (table["p50_ms"] > 0).all()
    assert list(table["ratio"][table["name"] == "pytorch fp32"]) == [1, 1]
    np.testing.assert_allclose(table["images_per_second"], 1000 * table["batch"] / table["p50_ms"])


def test_memory_is_measured_in_a_process_of_its_own(exported):
    assert 0 < peak_memory_mb(exported[0] / FILES["onnx"]) < 500


def test_memory_of_a_file_that_is_no_model_is_an_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="measuring memory failed"):
        peak_memory_mb(tmp_path / "model.onnx")


def test_compare_scores_at_the_models_and_at_the_original_size(exported, tables, tmp_path):
    (tmp_path / FILES["onnx"]).write_bytes((exported[0] / FILES["onnx"]).read_bytes())
    table = compare(tmp_path, tables[1], repeats=2)
    assert list(table.columns) == [
        "name",
        "dice",
        "dice_full",
        "agreement",
        "max_abs_diff",
        "megabytes",
        "peak_mb",
        "p50_ms",
        "p95_ms",
        "ratio",
    ]
    row = table.iloc[0]
    expected = exported[1].set_index("format")
    assert row["name"] == "onnx fp32"
    assert row["dice"] == pytest.approx(expected.loc["onnx", "dice"], abs=1e-6)
    assert 0.7 < row["dice_full"] <= 1
    assert (row["agreement"], row["max_abs_diff"], row["ratio"]) == (1, 0, 1)
    assert row["megabytes"] == pytest.approx(expected.loc["onnx", "bytes"] / 1e6)


def test_compare_without_an_exported_model_is_an_error(tmp_path, tables):
    with pytest.raises(DataError, match="no exported model here"):
        compare(tmp_path, tables[1])


def test_the_raw_model_gives_logits_not_probabilities(predictor, photo):
    batch = torch.from_numpy(load_image(photo, 32)[None, None].astype(np.float32) / 255).numpy()
    logits = predictor.logits(batch)
    assert logits.shape == (1, 1, 32, 32)
    assert logits.min() < -1
