"""A folder of images becomes masks or a submission: in order, whole, and safe to stop."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from unetlib.carvana import DataError, rle_decode
from unetlib.formats import FILES
from unetlib.inference import load_predictor
from unetlib.submission import image_files, write_masks, write_submission

ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))


@pytest.fixture(scope="module")
def many(data_set, tmp_path_factory):
    """70 photos, more than four batches."""
    folder = tmp_path_factory.mktemp("many photos")
    photos = sorted((data_set / "train").iterdir())
    for number in range(70):
        shutil.copy(photos[number % len(photos)], folder / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def undisturbed(predictor, many, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "submission.csv"
    assert write_submission(predictor, image_files([many]), path) == []
    return path.read_bytes()


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
    assert write_masks(predictor, images, tmp_path / "masks") == []
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert names == {f"{image.stem}_mask.png" for image in images}
    with Image.open(tmp_path / "masks" / f"{images[0].stem}_mask.png") as opened:
        written = np.asarray(opened.convert("L"))
    np.testing.assert_array_equal(written, predictor.predict_mask(images[0]) * 255)


@pytest.mark.parametrize("flip", [False, True])
def test_the_submission_decodes_to_the_predicted_masks(predictor, data_set, tmp_path, flip):
    images = image_files([data_set / "test"])
    path = tmp_path / "sub" / "submission.csv"
    assert write_submission(predictor, images, path, flip=flip) == []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["img"] for row in rows] == [image.name for image in images]
    for image, row in zip(images, rows, strict=True):
        mask = rle_decode(row["rle_mask"], 40, 60)
        expected = predictor.predict_mask(image, flip=flip)
        assert (mask != expected).mean() < 0.002  # batches of one and of four round differently
        assert mask.any()
    assert [file.name for file in path.parent.iterdir()] == ["submission.csv"]


def test_unreadable_images_are_listed_and_the_rest_is_written(
    predictor, data_set, tmp_path, capsys
):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    whole = (data_set / "test").iterdir()
    (tmp_path / "cut.jpg").write_bytes(min(whole).read_bytes()[:700])
    images = [tmp_path / "broken.jpg", *image_files([data_set / "test"]), tmp_path / "cut.jpg"]
    path = tmp_path / "out" / "submission.csv"
    problems = write_submission(predictor, images, path)
    assert [file for file, _ in problems] == [str(images[0]), str(images[-1])]
    with open(path, newline="") as file:
        assert [row["img"] for row in csv.DictReader(file)] == [i.name for i in images[1:-1]]
    with open(path.with_name("submission.unreadable.csv"), newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["file"] for row in listed] == [file for file, _ in problems]
    assert "cannot be read as an image" in listed[0]["problem"]
    assert "left out" in capsys.readouterr().err

    write_submission(predictor, images[1:-1], path)  # all is well now: no stale list
    assert [file.name for file in path.parent.iterdir()] == ["submission.csv"]


def test_nothing_readable_is_an_error_and_leaves_nothing(predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 1 images can be read"):
        write_submission(predictor, [tmp_path / "broken.jpg"], tmp_path / "out" / "submission.csv")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_images_of_one_name_are_refused(predictor, data_set, tmp_path):
    image = min((data_set / "test").iterdir())
    shutil.copy(image, tmp_path / image.name)
    with pytest.raises(DataError, match="two images of this name"):
        write_submission(predictor, [image, tmp_path / image.name], tmp_path / "s.csv")
    with Image.open(image) as opened:
        opened.save(tmp_path / f"{image.stem}.png")
    both = [image, tmp_path / f"{image.stem}.png"]
    with pytest.raises(DataError, match="two images of this name"):
        write_masks(predictor, both, tmp_path / "masks")


# ---------------------------------------------------------------------- stopped, killed, disturbed

STOP = "import sys, unetlib.submission as s; s.BATCH_SIZE = 4; s.AHEAD = 8\n"
STOP += "from unetlib.inference import load_predictor\n"
STOP += "images = s.image_files([sys.argv[2]])\n"
STOP += "s.write_submission(load_predictor(sys.argv[1], 'cpu'), images, sys.argv[3])"


def _lines(folder) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def _started(exported, many, path):
    command = [
        sys.executable,
        "-c",
        STOP,
        str(exported[0] / FILES["pytorch"]),
        str(many),
        str(path),
    ]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("stopped_by", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_gives_the_same_file(
    exported, predictor, many, undisturbed, tmp_path, stopped_by
):
    path, notes = tmp_path / "submission.csv", tmp_path / ".submission.csv.parts"
    for at_least in (8, 40):
        process = _started(exported, many, path)
        while _lines(notes) < at_least and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(stopped_by)
        process.wait()
        assert not path.exists()
    done = _lines(notes)
    assert 40 <= done < 70
    assert write_submission(predictor, image_files([many]), path) == []
    assert path.read_bytes() == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]


@pytest.fixture
def half_done(exported, many, tmp_path):
    """(output path, folder of notes) of a run that was killed half-way."""
    path, notes = tmp_path / "submission.csv", tmp_path / ".submission.csv.parts"
    process = _started(exported, many, path)
    while _lines(notes) < 30:
        time.sleep(0.002)
    process.kill()
    process.wait()
    return path, notes


def test_damaged_notes_do_not_count(half_done, predictor, many, undisturbed):
    path, notes = half_done
    file = max(notes.glob("*.jsonl"), key=lambda one: one.stat().st_size)
    content = file.read_bytes().splitlines(keepends=True)
    content[3] = content[3].replace(b"1", b"2")  # another number: still json, wrong checksum
    content[5] = content[5][:40] + b"\n"
    content[7] = bytes(len(content[7]))
    file.write_bytes(b"".join(content)[:-20])
    write_submission(predictor, image_files([many]), path)
    assert path.read_bytes() == undisturbed


def test_notes_of_another_model_or_threshold_are_not_used(
    half_done, exported, many, undisturbed, tmp_path
):
    path, notes = half_done
    about = json.loads((notes / "job.json").read_text())
    other = load_predictor(exported[0] / FILES["onnx"])
    write_submission(other, image_files([many]), path)
    fresh = tmp_path / "fresh.csv"
    write_submission(other, image_files([many]), fresh)
    assert about["threshold"] == 0.5 and path.read_bytes() == fresh.read_bytes()


def test_an_image_that_was_replaced_is_predicted_anew(half_done, predictor, many, tmp_path):
    path, _ = half_done
    copy = tmp_path / "copy"
    shutil.copytree(many, copy)
    write_submission(predictor, image_files([copy]), tmp_path / "a.csv")
    Image.new("RGB", (60, 40), (250, 250, 250)).save(many / "000.jpg")
    try:
        write_submission(predictor, image_files([many]), path)
    finally:
        shutil.copy(copy / "000.jpg", many / "000.jpg")
    before, after = (p.read_text().splitlines() for p in (tmp_path / "a.csv", path))
    assert before[1] != after[1] and before[2:] == after[2:]


def test_two_processes_share_the_images_and_go_on_with_each_others_notes(
    half_done, exported, many, undisturbed
):
    path, _ = half_done
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["unetlib", "predict", str(many), "--model", str(exported[0] / FILES["pytorch"])]
    command += ["--output", str(path), "--json"]
    environment = dict(ENVIRONMENT, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert json.loads(finished.stdout.splitlines()[-1])["images"] == 70
    assert finished.stdout.count('"images"') == 1
    assert path.read_bytes() == undisturbed
