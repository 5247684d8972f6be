"""Masks in Kaggle's csv format against the true ones: the mean Dice, or one sentence why not."""

import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from unetlib import (
    REPOSITORY,
    DataError,
    dice,
    find_samples,
    image_files,
    load_mask,
    rle_decode,
    rle_encode,
    score,
    write_submission,
)
from unetlib.__main__ import main

TRUTH = {"a.jpg": "2 2", "b.jpg": "", "c.jpg": "", "d.jpg": "5 3 10 1"}
SOLUTION = REPOSITORY / "data" / "solution" / "solution.csv"


@pytest.fixture
def table(tmp_path):
    """Write codes by picture into a csv file; its path."""

    def write(codes: dict, name="submission.csv"):
        lines = ["img,rle_mask", *(f"{img},{code}" for img, code in codes.items()), ""]
        packed = gzip.compress if name.endswith(".gz") else bytes
        (tmp_path / name).write_bytes(packed("\n".join(lines).encode()))
        return tmp_path / name

    return write


# ----------------------------------------------------------------------------------------- scores


def test_a_row_per_picture_of_the_solution_in_its_order(table):
    found = {"d.jpg": "5 3 10 1", "c.jpg": "1 1", "b.jpg": "", "a.jpg": "1 2"}
    scores = score(table(found), table(TRUTH, "solution.csv"))
    assert list(scores.columns) == ["img", "dice"]
    assert scores["img"].tolist() == list(TRUTH)
    assert scores["dice"].dtype == np.float64
    assert scores["dice"].tolist() == [0.5, 1, 0, 1]


def test_packed_files_and_empty_masks_as_pandas_writes_them(table, tmp_path):
    codes = pd.DataFrame({"img": list(TRUTH), "rle_mask": [one or None for one in TRUTH.values()]})
    codes.to_csv(tmp_path / "by_pandas.csv", index=False)
    packed = table(TRUTH, "solution.csv.gz")
    for solution in (packed, str(packed)):
        assert score(tmp_path / "by_pandas.csv", solution)["dice"].tolist() == [1, 1, 1, 1]
    assert score(packed, tmp_path / "by_pandas.csv")["dice"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_size_of_the_picture_does_not_matter(table, seed):
    masks = np.random.default_rng(seed).random((2, 20, 13)) > 0.6
    masks[:, 9:] &= masks[:, 9:10]
    masks[seed % 2, 12:] = False  # one of them ends earlier
    files = [table({"a.jpg": rle_encode(mask)}, f"{n}.csv") for n, mask in enumerate(masks)]
    assert score(*files)["dice"].item() == pytest.approx(dice(*masks).item())


def test_the_embedded_solution_is_of_the_test_pictures_and_the_default(tmp_path):
    truth = pd.read_csv(SOLUTION)
    pictures = image_files(REPOSITORY / "data" / "sample" / "test")
    assert truth["img"].tolist() == [picture.name for picture in pictures]
    masks = [rle_decode(code, 320, 480) for code in truth["rle_mask"]]
    assert all(0.05 < mask.mean() < 0.4 for mask in masks)
    moved = [np.roll(mask, 7, axis=1) for mask in masks]
    truth["rle_mask"] = list(map(rle_encode, moved))
    truth[::-1].to_csv(tmp_path / "moved.csv", index=False)
    scores = score(tmp_path / "moved.csv")
    expected = [dice(*pair).item() for pair in zip(moved, masks, strict=True)]
    assert scores["dice"].tolist() == pytest.approx(expected)
    assert scores["img"].tolist() == truth["img"].tolist()
    assert (score(SOLUTION)["dice"] == 1).all()


def test_a_prediction_scores_what_its_masks_do(predictor, data_set, tmp_path):
    write_submission(predictor, image_files(data_set / "train"), tmp_path / "s.csv.gz")
    scores = score(tmp_path / "s.csv.gz", data_set / "train_masks.csv").set_index("img")["dice"]
    samples = find_samples(data_set).query("mask != ''")
    assert len(scores) == len(samples) == 20
    for row in samples.itertuples():
        expected = dice(predictor.predict_mask(row.image), load_mask(row.mask)).item()
        assert scores[f"{row.id}.jpg"] == pytest.approx(expected, abs=0.005)  # batches round
    assert scores.mean() > 0.7


def test_pictures_that_the_solution_does_not_know_are_counted(table):
    more = table(TRUTH | {"e.jpg": "1 1", "f.jpg": ""})
    with pytest.warns(UserWarning, match=r"submission\.csv: 2 .*solution\.csv"):
        scores = score(more, table(TRUTH, "solution.csv"))
    assert scores["dice"].tolist() == [1] * 4
    with warnings.catch_warnings(action="error"):
        score(table(TRUTH), table(TRUTH, "solution.csv"))


# --------------------------------------------------------------------------------------- refusals

EMPTY = {"a.jpg": "", "b.jpg": "", "c.jpg": "", "d.jpg": ""}


def rows(*lines: str, **changed: str) -> bytes:
    codes = EMPTY | {f"{name}.jpg": code for name, code in changed.items()} if not lines else {}
    lines = ["img,rle_mask", *lines, *(f"{img},{code}" for img, code in codes.items()), ""]
    return "\n".join(lines).encode()


WRONG = {
    "no such file": (None, ""),
    "an empty file": (b"", ""),
    "other columns": (b"id,mask\na.jpg,1 1\n", "rle_mask"),
    "no csv file": (bytes(range(256)), ""),
    "a row without a mask's column": (rows("a.jpg", "b.jpg,", "c.jpg,", "d.jpg,"), "a.jpg"),
    "a picture twice": (rows("a.jpg,", "b.jpg,", "b.jpg,1 1", "c.jpg,", "d.jpg,"), "b"),
    "a picture missing": (rows("a.jpg,", "b.jpg,", "d.jpg,"), "c"),
    "no picture": (b"img,rle_mask\n", ""),
    "other pictures": (rows("x.jpg,", "y.jpg,"), "a"),
    "an odd number": (rows(b="1 1 7"), "b"),
    "a word": (rows(c="1 one"), "c"),
    "overlapping runs": (rows(c="5 9 7 20"), "c"),
    "descending runs": (rows(c="9 2 1 2"), "c"),
    "an empty run": (rows(c="9 0"), "c"),
    "a negative start": (rows(c="-4 9"), "c"),
    "a run of no picture's length": (rows(a="1 999999999999"), "a"),
    "a huge number": (rows(a="1 " + "9" * 5000), "a"),
}


@pytest.mark.fault("score: files that are missing, damaged, cut or of other pictures", "one line")
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_scored_is_one_sentence(table, tmp_path, what):
    content, first = WRONG[what]
    if content is not None:
        (tmp_path / "wrong.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"wrong\.csv: .*{first}") as caught:
        score(tmp_path / "wrong.csv", table(TRUTH, "solution.csv"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    if what == "other pictures":
        with pytest.raises(DataError, match=r"submission\.csv: .*wrong\.csv.*x.*--solution"):
            score(table(TRUTH), tmp_path / "wrong.csv")
    elif what != "a picture missing":  # which is one more in the submission
        with pytest.raises(DataError, match=r"wrong\.csv: "):  # as the solution, too
            score(table(TRUTH), tmp_path / "wrong.csv")


@pytest.mark.fault("score: a packed file that is cut, or not packed", "one line")
def test_a_damaged_packed_file_is_one_sentence(table, tmp_path):
    whole = table(TRUTH, "solution.csv.gz").read_bytes()
    for content in (
        whole[:-12],
        whole[:15],
        whole[:14] + b"\xff\xff" + whole[16:],
        b"img,rle_mask\n",
    ):
        (tmp_path / "wrong.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"wrong\.csv\.gz: "):
            score(tmp_path / "wrong.csv.gz", table(TRUTH, "solution.csv"))


# --------------------------------------------------------------------------------- in a terminal


def test_the_command_prints_the_mean_and_the_worst(table, capsys):
    typed = ["score", str(table(TRUTH | {"a.jpg": "1 2", "c.jpg": "1 1"}))]
    typed += ["--solution", str(table(TRUTH, "solution.csv"))]
    assert main(typed) == 0
    shown = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert shown == {"images": "4", "dice": "0.625", "worst": "c.jpg", "worst_dice": "0"}
    assert main([*typed, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == dict(images=4, dice=0.625, worst="c.jpg", worst_dice=0)


def test_the_command_takes_the_embedded_solution(capsys):
    assert main(["score", str(SOLUTION), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["dice"], result["worst_dice"]) == (128, 1, 1)
