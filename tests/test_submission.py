"""A folder of images becomes masks or a submission: in order, whole, and safe to stop."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unetlib import (
    FILES,
    DataError,
    image_files,
    load_image,
    load_predictor,
    rle_decode,
    submission,
    write_masks,
    write_submission,
)

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


# --------------------------------------------------------------------- what must not be replaced


def _contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault("masks or a csv of a data set given as output", "refused, nothing is changed")
@pytest.mark.parametrize("suffix", [".gif", ".png"])
@pytest.mark.parametrize("name", ["train_masks", "train_masks.csv", "metadata.csv", "link", "old"])
def test_the_truth_is_never_replaced(predictor, own_data_set, name, suffix):
    for mask in list((own_data_set / "train_masks").iterdir()) if suffix == ".png" else []:
        with Image.open(mask) as opened:
            opened.save(mask.with_suffix(".png"))
        mask.unlink()
    (own_data_set / "link").symlink_to(own_data_set / "train_masks")
    shutil.copytree(own_data_set / "train_masks", own_data_set / "old")
    before = _contents(own_data_set)
    write = write_submission if name.endswith(".csv") else write_masks
    images = image_files(own_data_set / "train")
    if (name, suffix) == ("old", ".gif"):  # nobody takes these names away
        assert write(predictor, images, own_data_set / name) == []
        assert before.items() <= _contents(own_data_set).items()
        return
    with pytest.raises(DataError, match=rf"{name}.*choose another --output"):
        write(predictor, images, own_data_set / name)
    assert _contents(own_data_set) == before


@pytest.mark.fault("another program's csv file given as output", "refused, nothing is changed")
@pytest.mark.parametrize("foreign", ["out.csv", "out.unreadable.csv", "folder"])
def test_a_csv_of_somebody_else_is_never_replaced(predictor, data_set, tmp_path, foreign):
    if foreign == "folder":
        (tmp_path / "out.csv").mkdir()
    else:
        (tmp_path / foreign).write_text("name,price\nhorse,3\n")
    before = _contents(tmp_path)
    with pytest.raises(DataError, match=r"out.*\.csv: not written by unetlib"):
        write_submission(predictor, image_files(data_set / "test"), tmp_path / "out.csv")
    assert _contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["masks", "submission.csv"])
def test_what_unetlib_wrote_is_written_anew(exported, predictor, data_set, tmp_path, name):
    write = write_submission if name.endswith(".csv") else write_masks
    images = image_files(data_set / "test")
    write(predictor, images, tmp_path / name)
    first = _contents(tmp_path)
    write(predictor, images, tmp_path / name)
    assert _contents(tmp_path) == first
    write(load_predictor(exported[0] / FILES["int8"]), images, tmp_path / name)
    assert _contents(tmp_path).keys() == first.keys() and _contents(tmp_path) != first
    for file in first:  # as when the power fails
        file.write_bytes(bytes(500))
    write(predictor, images, tmp_path / name)
    assert _contents(tmp_path) == first


@pytest.mark.fault("a picture's name given as output folder", "refused, with what is wanted")
def test_the_masks_of_many_images_are_no_picture(predictor, data_set, tmp_path):
    (tmp_path / "file").touch()
    for name in ("mask.png", "file"):
        with pytest.raises(DataError, match=rf"{name}: give --output a folder"):
            write_masks(predictor, image_files(data_set / "test"), tmp_path / name)
    assert not (tmp_path / "mask.png").exists()


# ------------------------------------------------------------------------------------------- names


def test_one_path_is_a_list_of_one(predictor, data_set, tmp_path):
    photo = str(min((data_set / "test").iterdir()))
    assert image_files(str(data_set / "test"))[0] == min((data_set / "test").iterdir())
    assert write_masks(predictor, photo, tmp_path / "masks") == []
    assert len(list((tmp_path / "masks").iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
@pytest.mark.fault("a picture's name is not UTF-8", "a csv file lists it; its mask is written")
def test_a_name_that_is_not_utf8_stops_nothing(predictor, data_set, tmp_path, capsys):
    folder = shutil.copytree(data_set / "test", tmp_path / "photos")
    odd, broken = (folder / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"\xe9.jpg"))
    min(folder.iterdir()).rename(odd)
    broken.write_bytes(b"no image")
    images = image_files(folder)
    problems = dict(write_submission(predictor, images, tmp_path / "s.csv"))
    assert problems.keys() == {str(odd), str(broken)}
    assert "rename it" in problems[str(odd)]
    assert len((tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
    listed = (tmp_path / "s.unreadable.csv").read_text(encoding="utf-8")
    assert r"caf\udce9.jpg" in listed and "left out" in capsys.readouterr().err

    assert list(dict(write_masks(predictor, images, tmp_path / "masks"))) == [str(broken)]
    assert (tmp_path / "masks" / os.fsdecode(b"caf\xe9_mask.png")).is_file()
    assert r"\udce9.jpg" in (tmp_path / "masks" / "unreadable.csv").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on names alone")
@pytest.mark.fault("a name too long for its mask", "listed; the other masks are written")
def test_a_name_too_long_for_its_mask_is_listed(predictor, data_set, tmp_path):
    folder = shutil.copytree(data_set / "test", tmp_path / "photos")
    long = min(folder.iterdir()).rename(folder / f"{'x' * 250}.jpg")
    for _ in range(2):
        ((file, problem),) = write_masks(predictor, image_files(folder), tmp_path / "masks")
        assert file == str(long) and "shorten the image's" in problem
        assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 3


# ---------------------------------------------------------------------- stopped, killed, disturbed

# A process that stops itself with a signal when it has written its N-th note.
STOP = """
import os, sys
from signal import SIGINT, default_int_handler, signal as handle
import unetlib.submission as s
from unetlib.inference import image_files, load_predictor
handle(SIGINT, default_int_handler)  # a shell's background jobs ignore it
model, images, output, number, signal = sys.argv[1:]
count, note = [0], s._note
def noting(notes, *rest):
    note(notes, *rest)
    count[0] += 1
    if count[0] == int(number):
        notes.write("0000 cut o")
        notes.flush()
        os.kill(os.getpid(), int(signal))
s._note = noting
write = s.write_submission if output.endswith("csv") else s.write_masks
write(load_predictor(model, "cpu"), image_files([images]), output)
"""


def _stopped(exported, many, output, number, by="SIGKILL") -> int:
    """The return code of a process that was stopped after so many notes."""
    command = [sys.executable, "-c", STOP, exported[0] / FILES["pytorch"], many, output, number]
    command.append(getattr(signal, by).value)
    finished = subprocess.run(list(map(str, command)), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    return finished.returncode


@pytest.fixture
def read(monkeypatch):
    """The images read from now on."""
    seen = []
    monkeypatch.setattr(
        submission, "load_image", lambda image, size: seen.append(image) or load_image(image, size)
    )
    return seen


@pytest.mark.fault("submission run is killed, twice", "goes on; the same file, byte for byte")
@pytest.mark.parametrize("by", ["SIGKILL", "SIGINT"])
def test_a_killed_run_goes_on_and_gives_the_same_file(
    exported, predictor, many, undisturbed, tmp_path, read, by
):
    path = tmp_path / "submission.csv"
    for number in (20, 21):
        assert _stopped(exported, many, path, number, by) != 0
        assert not path.exists()
    assert write_submission(predictor, image_files([many]), path) == []
    assert len(read) == 70 - 20 - 21
    assert path.read_bytes() == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]


@pytest.mark.fault("masks run is killed, and a mask deleted", "goes on; both are written")
def test_killed_masks_go_on_and_a_deleted_one_is_written_again(
    exported, predictor, many, tmp_path, read
):
    folder = tmp_path / "masks"
    assert _stopped(exported, many, folder, 30) != 0
    (folder / "000_mask.png").unlink()
    assert write_masks(predictor, image_files([many]), folder) == []
    assert len(read) == 70 - 30 + 1
    assert len(list(folder.iterdir())) == 70
    with Image.open(folder / "000_mask.png") as opened:
        written = np.asarray(opened)
    assert (written != predictor.predict_mask(many / "000.jpg")).mean() < 0.002


def test_masks_do_not_go_among_the_photos(predictor, many):
    with pytest.raises(DataError, match="its own folder cannot take the masks"):
        write_masks(predictor, image_files([many]), many)


@pytest.fixture
def half_done(exported, many, tmp_path):
    """(output path, folder of notes) of a run that was killed half-way."""
    path = tmp_path / "submission.csv"
    assert _stopped(exported, many, path, 30) != 0
    return path, tmp_path / ".submission.csv.parts"


@pytest.mark.fault("notes of a submission run are damaged", "their images are done again")
def test_damaged_notes_do_not_count(half_done, predictor, many, undisturbed, read):
    path, notes = half_done
    file = max(notes.glob("*.jsonl"), key=lambda one: one.stat().st_size)
    content = file.read_bytes().splitlines(keepends=True)
    content[3] = content[3].replace(b"1", b"2")  # another number: still json, wrong checksum
    content[5] = content[5][:40] + b"\n"
    content[7] = bytes(len(content[7]))
    file.write_bytes(b"".join(content))
    write_submission(predictor, image_files([many]), path)
    assert len(read) == 70 - 30 + 4  # zeros hold no line end: the next line is lost, too
    assert path.read_bytes() == undisturbed


@pytest.mark.parametrize("changed", ["model", "flip"])
def test_notes_of_another_model_or_way_are_not_used(
    half_done, exported, predictor, many, undisturbed, read, changed
):
    path, _ = half_done
    other = load_predictor(exported[0] / FILES["onnx"]) if changed == "model" else predictor
    write_submission(other, image_files([many]), path, flip=changed == "flip")
    assert len(read) == 70
    assert changed == "model" or path.read_bytes() != undisturbed


def test_an_image_that_was_replaced_is_predicted_anew(half_done, predictor, many, tmp_path, read):
    path, _ = half_done
    copy = tmp_path / "copy"
    shutil.copytree(many, copy)
    write_submission(predictor, image_files([copy]), tmp_path / "a.csv")
    Image.new("RGB", (60, 40), (250, 250, 250)).save(many / "000.jpg")
    try:
        write_submission(predictor, image_files([many]), path)
    finally:
        shutil.copy(copy / "000.jpg", many / "000.jpg")
    assert len(read) == 70 + 41  # all of the copy, and what was left or replaced here
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
