"""A prediction that is stopped, killed or disturbed goes on: the same files, jobs never mixed."""

import io
import itertools
import json
import os
import shutil
import signal
import socket
import threading
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from other_process import start
from PIL import Image

from unetlib import (
    FILES,
    DataError,
    image_files,
    load_image,
    load_predictor,
    write_masks,
    write_submission,
)
from unetlib.__main__ import main
from unetlib.deploy import submission

PHOTOS = 40  # batches of 16, 16 and 8
PARTS = ".submission.csv.parts"


def fill(folder, data_set):
    """The same photos in every folder, as old as in the data set."""
    folder.mkdir()
    photos = sorted((data_set / "train").iterdir())
    for number in range(PHOTOS):
        shutil.copy2(photos[number % len(photos)], folder / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def many(data_set, tmp_path_factory):
    """A folder of photos that no test changes."""
    return fill(tmp_path_factory.mktemp("many") / "photos", data_set)


@pytest.fixture
def own(data_set, tmp_path):
    """A folder of the same photos that the test may change."""
    return fill(tmp_path / "photos", data_set)


@pytest.fixture(scope="module")
def undisturbed(predictor, many, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "submission.csv"
    assert write_submission(predictor, image_files(many), path) == []
    return path.read_bytes()


@pytest.fixture
def read(monkeypatch):
    """The images read from now on."""
    seen = []
    monkeypatch.setattr(
        submission, "load_image", lambda image, *how: seen.append(image) or load_image(image, *how)
    )
    return seen


def in_the_third_batch(predictor, act, predict) -> None:
    """Call ``predict()``, and ``act()`` just before its third batch is computed."""
    batches, compute = itertools.count(), predictor.predict_maps

    def disturbed(images, flip):
        if next(batches) == 2:
            act()
        return compute(images, flip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "predict_maps", disturbed)
        predict()


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def stopped(predictor, tmp_path):
    """Call with a folder of photos: the output of a run that was stopped after two batches."""

    def run(folder, name="submission.csv"):
        write = write_submission if name.endswith(".csv") else write_masks
        with pytest.raises(KeyboardInterrupt):
            in_the_third_batch(
                predictor, stop, lambda: write(predictor, image_files(folder), tmp_path / name)
            )
        return tmp_path / name

    return run


def finished_in(output) -> list:
    """The images' results that unfinished jobs have left."""
    parts = output.parent / PARTS if output.suffix == ".csv" else output / ".parts"
    return sorted(parts.glob("?" * 64))


# ---------------------------------------------------------------------------------- real processes


def predict_until(count: int, by: signal.Signals, model, folder, output) -> None:
    """Send oneself a signal when so many images are finished."""
    finish, lock, done = submission._Job._finish, threading.Lock(), itertools.count(1)

    def counting(job, *rest):
        with lock:
            finish(job, *rest)
            if next(done) == count:
                os.kill(os.getpid(), by)
        return True

    submission._Job._finish = counting
    write = write_submission if output.suffix == ".csv" else write_masks
    with redirect_stderr(io.StringIO()):
        write(load_predictor(model, "cpu"), image_files(folder), output)


def killed(count, by, exported, folder, output) -> int:
    """How many results a process leaves that is stopped after so many."""
    model = exported[0] / FILES["pytorch"]
    process, answer = start(predict_until, count, by, model, folder, output)
    with pytest.raises(EOFError):
        answer.recv()
    process.join()
    assert process.exitcode not in (0, None)
    return len(finished_in(output))


@pytest.mark.fault("a submission run is killed, twice", "goes on; the same file, byte for byte")
@pytest.mark.parametrize("by", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.slow)], ids=str)
def test_a_killed_run_goes_on_and_gives_the_same_file(
    exported, predictor, many, undisturbed, tmp_path, read, by
):
    path = tmp_path / "submission.csv"
    for count in (8, 5):
        done = killed(count, signal.Signals[by], exported, many, path)
        assert not path.exists()
    assert 13 <= done < PHOTOS
    assert write_submission(predictor, image_files(many), path) == []
    assert len(read) == PHOTOS - done
    assert path.read_bytes() == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]


@pytest.mark.slow
@pytest.mark.fault("a masks run is killed, and a mask deleted", "goes on; both are written")
def test_killed_masks_go_on_and_a_deleted_one_is_written_again(
    exported, predictor, many, tmp_path, read
):
    folder = tmp_path / "masks"
    done = killed(20, signal.SIGKILL, exported, many, folder)
    finished_in(folder)[0].unlink()
    assert write_masks(predictor, image_files(many), folder) == []
    assert len(read) == PHOTOS - done + 1
    assert len(list(folder.iterdir())) == PHOTOS


def one_of_two(rank: int, port: int, arguments: list[str]) -> tuple[int, str]:
    """Exit status and stdout of what torchrun would start as the process ``rank`` of two."""
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ |= dict(CUDA_VISIBLE_DEVICES="")
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(io.StringIO()):
        status = main(arguments)
    return status, shown.getvalue()


def test_two_processes_share_the_images_and_what_is_finished(stopped, exported, many, undisturbed):
    output = stopped(many)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["predict", str(many), "--model", str(exported[0] / FILES["pytorch"])]
    command += ["--output", str(output), "--json"]
    started = [start(one_of_two, rank, port, command) for rank in range(2)]
    (first, shown), (second, nothing) = (answer.recv() for _, answer in started)
    for process, _ in started:
        process.join()
    assert (first, second, nothing) == (0, 0, "")
    assert json.loads(shown)["images"] == PHOTOS
    assert output.read_bytes() == undisturbed


@pytest.mark.slow
def test_two_processes_share_what_is_drawn_and_one_says_which_model_answers(
    exported, predictor, many, tmp_path
):
    shutil.copytree(exported[0], tmp_path / "home" / "models")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["predict", str(many), "--output", str(tmp_path / "both"), "--overlay", "--json"]
    started = [start(one_of_two, rank, port, command) for rank in range(2)]
    (first, shown), (second, nothing) = (answer.recv() for _, answer in started)
    for process, _ in started:
        process.join()
    assert (first, second, nothing) == (0, 0, "")
    assert json.loads(shown)["masks"] == PHOTOS
    write_masks(predictor, image_files(many), tmp_path / "alone", overlay=True)
    files = {one.name: one.read_bytes() for one in (tmp_path / "alone").iterdir()}
    assert {one.name: one.read_bytes() for one in (tmp_path / "both").iterdir()} == files


# -------------------------------------------------------------------------------- what goes on


@pytest.mark.parametrize("name", ["submission.csv", "masks"])
def test_a_stopped_run_goes_on_and_leaves_nothing_else(
    stopped, predictor, many, tmp_path, read, name
):
    write = write_submission if name.endswith(".csv") else write_masks
    output = stopped(many, name)
    assert len(finished_in(output)) == 32
    read.clear()
    assert write(predictor, image_files(many), output) == []
    assert len(read) == PHOTOS - 32
    if name == "masks":
        assert len(list(output.iterdir())) == PHOTOS
        with Image.open(output / "039_mask.png") as opened:
            written = np.asarray(opened)
        assert (written != predictor.predict_mask(many / "039.jpg")).mean() < 0.002
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.fault("a run that draws is stopped, a part lost, one spoilt", "the same files")
def test_overlays_and_cut_outs_go_on_too(predictor, many, tmp_path, read):
    images, both = image_files(many), dict(overlay=True, cutout=True)
    write_masks(predictor, images, tmp_path / "undisturbed", **both)
    output = tmp_path / "masks"
    with pytest.raises(KeyboardInterrupt):
        in_the_third_batch(predictor, stop, lambda: write_masks(predictor, images, output, **both))
    assert len(finished_in(output)) == 32 and [one.name for one in output.iterdir()] == [".parts"]
    finished_in(output)[0].with_suffix(".overlay").unlink()
    spoilt = finished_in(output)[1].with_suffix(".cutout")
    spoilt.write_bytes(bytes(spoilt.stat().st_size))
    read.clear()
    assert write_masks(predictor, images, output, **both) == []
    assert len(read) == PHOTOS - 32 + 2
    files = {one.name: one.read_bytes() for one in (tmp_path / "undisturbed").iterdir()}
    assert {one.name: one.read_bytes() for one in output.iterdir()} == files
    assert len(files) == 3 * PHOTOS


def test_masks_that_a_stopped_run_has_finished_are_drawn_by_the_next_one(stopped, many, predictor):
    output = stopped(many, "masks")
    assert write_masks(predictor, image_files(many), output, overlay=True) == []
    assert len(list(output.glob("*_overlay.png"))) == PHOTOS == len([*output.iterdir()]) // 2


@pytest.mark.fault("a power failure leaves zeros or a part of a result", "predicted again")
@pytest.mark.parametrize("name", ["submission.csv", "masks"])
def test_zeros_and_cut_files_do_not_count(stopped, predictor, many, read, name):
    write = write_submission if name.endswith(".csv") else write_masks
    output = stopped(many, name)
    spoilt = finished_in(output)[:4]
    whole = [file.read_bytes() for file in spoilt]
    for file, left in zip(
        spoilt, (b"", bytes(len(whole[1])), whole[2][:-1], whole[3][: len(whole[3]) // 2]),
        strict=True,
    ):  # fmt: skip
        file.write_bytes(left)
    read.clear()
    write(predictor, image_files(many), output)
    assert len(read) == PHOTOS - 32 + 4
    if name == "masks":
        assert set(whole) <= {file.read_bytes() for file in output.iterdir()}


def test_an_image_that_was_replaced_is_predicted_anew(stopped, predictor, own, undisturbed, read):
    output = stopped(own)
    old = (own / "000.jpg").stat()
    Image.new("RGB", (60, 40), (250, 250, 250)).save(own / "000.jpg")
    os.utime(own / "000.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))  # it claims to be as old
    (own / "001.jpg").rename(own / "spare.jpg")
    (own / "001.jpg").symlink_to(own / "002.jpg")  # an old file behind a new link
    read.clear()
    write_submission(predictor, image_files(sorted(own.glob("0*.jpg"))), output)
    assert len(read) == PHOTOS - 32 + 2
    before, after = undisturbed.decode().splitlines(), output.read_text().splitlines()
    assert before[1] != after[1]
    assert after[2].partition(",")[2] == after[3].partition(",")[2] != before[2].partition(",")[2]
    assert before[3:] == after[3:]


# ------------------------------------------------------------------------- what is another job


@pytest.mark.parametrize("changed", ["model", "flip"])
def test_results_of_another_model_or_way_are_not_used(
    stopped, exported, predictor, many, tmp_path, read, changed
):
    other = load_predictor(exported[0] / FILES["int8"]) if changed == "model" else predictor
    flip = changed == "flip"
    output = stopped(many)
    read.clear()
    write_submission(other, image_files(many), output, flip=flip)
    assert len(read) == PHOTOS
    write_submission(other, image_files(many), tmp_path / "alone.csv", flip=flip)
    assert output.read_bytes() == (tmp_path / "alone.csv").read_bytes()


@pytest.mark.fault(
    "the same command, another folder with the same file names", "nothing of the old is used"
)
@pytest.mark.parametrize("moved", [False, True], ids=["beside it", "in its place"])
def test_another_folder_with_images_of_the_same_names_is_another_job(
    stopped, predictor, own, tmp_path, read, moved
):
    output = stopped(own)
    other = shutil.copytree(own, tmp_path / "other")
    turned = {one.name: other / f"{(number + 1) % PHOTOS:03d}.jpg" for number, one in enumerate(
        image_files(own)
    )}  # fmt: skip
    for one in image_files(own):  # every name has another picture, as old as before
        shutil.copy2(one, turned[one.name])
    if moved:
        own.rename(tmp_path / "gone")
        other = other.rename(own)
    read.clear()
    write_submission(predictor, image_files(other), output)
    assert len(read) == PHOTOS
    write_submission(predictor, image_files(other), tmp_path / "alone.csv")
    assert output.read_bytes() == (tmp_path / "alone.csv").read_bytes()


@pytest.mark.fault("two models predict into one output at a time", "one job's files, whole")
@pytest.mark.parametrize("name", ["submission.csv", "masks"])
def test_two_models_on_one_output_never_mix(exported, predictor, many, tmp_path, name):
    write = write_submission if name.endswith(".csv") else write_masks
    images, int8 = image_files(many), load_predictor(exported[0] / FILES["int8"])
    with pytest.raises(DataError, match=r"\.parts.*run it again"):
        in_the_third_batch(
            predictor,
            lambda: write(int8, images, tmp_path / name),
            lambda: write(predictor, images, tmp_path / name),
        )
    write(int8, images, tmp_path / "alone" / name)
    alone, both = tmp_path / "alone" / name, tmp_path / name
    for file in [alone] if alone.is_file() else alone.iterdir():
        found = both if alone.is_file() else both / file.name
        assert found.read_bytes() == file.read_bytes()


@pytest.mark.fault("a run begins while another one is at work on another job", "nothing is mixed")
def test_a_run_takes_nothing_of_an_unfinished_one(exported, predictor, many, undisturbed, tmp_path):
    images, int8 = image_files(many), load_predictor(exported[0] / FILES["int8"])
    output = tmp_path / "submission.csv"

    def begin_another():
        with pytest.raises(KeyboardInterrupt):
            in_the_third_batch(int8, stop, lambda: write_submission(int8, images, output))
        assert len(finished_in(output)) == 64

    in_the_third_batch(
        predictor, begin_another, lambda: write_submission(predictor, images, output)
    )
    assert output.read_bytes() == undisturbed
    assert finished_in(output) == []


@pytest.mark.fault("the clock was put back since masks were written", "they are written again")
def test_masks_from_the_future_are_not_taken_for_this_jobs(
    exported, predictor, many, tmp_path, read
):
    images, int8 = image_files(many), load_predictor(exported[0] / FILES["int8"])
    write_masks(predictor, images, tmp_path / "masks")
    for mask in (tmp_path / "masks").iterdir():
        os.utime(mask, (4e9, 4e9))
    read.clear()
    write_masks(int8, images, tmp_path / "masks")
    assert len(read) == PHOTOS
    write_masks(int8, images, tmp_path / "alone")
    for mask in (tmp_path / "alone").iterdir():
        assert (tmp_path / "masks" / mask.name).read_bytes() == mask.read_bytes()
