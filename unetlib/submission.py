"""Files, images -> masks of a whole folder: PNG files or Kaggle's submission, safe to stop.

Reading images, the network, and writing masks overlap. What is done is noted line by line in a
folder beside the csv file or among the masks, so that a stopped run goes on where it was;
several processes share the images and their notes.
"""

import csv
import json
import os
import shutil
import sys
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from unetlib.carvana import IMAGE_SUFFIXES, DataError
from unetlib.config import whole_file
from unetlib.dataset import load_image
from unetlib.formats import file_hash
from unetlib.inference import (
    BATCH_SIZE,
    MASK_SIGN,
    Predictor,
    enlarge,
    paths_of,
    rle_of_map,
    save_mask,
    upright_size,
)
from unetlib.pictures import UNREADABLE

AHEAD = 3 * BATCH_SIZE  # images decoded before the network asks for them
# What a data set keeps its truth in; the csv files look like a submission.
TRUTH = ("train_masks", "train_masks.csv", "metadata.csv", "sample_submission.csv")
HEADER, UNREADABLE_HEADER = "img,rle_mask\n", "file,problem\n"

# Makes of an image's path, probability map and size (width, height) what its line will say.
Finish = Callable[[Path, np.ndarray, tuple[int, int]], str]


def write_masks(
    predictor: Predictor,
    images: Iterable[str | Path],
    folder: str | Path,
    *,
    flip: bool = False,
    accelerator: Accelerator | None = None,
) -> list[tuple[str, str]]:
    """Write each image's mask as ``<stem>_mask.png`` (0/255, original size).

    Arguments, result and errors as for ``write_submission``; what cannot be done is listed in
    ``unreadable.csv`` among the masks. Only masks written here are written anew.
    """
    folder, images = Path(folder), paths_of(images)
    if folder.is_file() or (folder.suffix.lower() in IMAGE_SUFFIXES and not folder.is_dir()):
        raise DataError(f"{folder}: give --output a folder, or a file whose name ends in .csv.")
    here = [image for image in images if image.resolve().parent == folder.resolve()]
    if here:
        raise DataError(
            f"{here[0]}: its own folder cannot take the masks; choose another --output."
        )

    def mask_file(image: Path) -> Path:
        return folder / f"{image.stem}_mask.png"

    def finish(image: Path, probability: np.ndarray, size: tuple[int, int]) -> str:
        unfinished = folder / ".parts" / mask_file(image).name
        save_mask(enlarge(probability, size) > predictor.threshold, unfinished)
        os.replace(unfinished, mask_file(image))
        return ""

    job = _Job(predictor, images, folder / ".parts", "stem", flip, accelerator)
    unreadable = folder / "unreadable.csv"
    masks = dict.fromkeys(map(mask_file, images), MASK_SIGN)
    _check_output(folder, {unreadable: UNREADABLE_HEADER, **masks})
    job.work(finish, lambda image: mask_file(image).is_file())
    return job.close(unreadable)


def write_submission(
    predictor: Predictor,
    images: Iterable[str | Path],
    path: str | Path,
    *,
    flip: bool = False,
    accelerator: Accelerator | None = None,
) -> list[tuple[str, str]]:
    """Write Kaggle's submission file, columns ``img,rle_mask``, a line per image in order.

    The file appears whole or not at all. A run that was stopped or killed goes on after the last
    images that it finished. An image that cannot be read, or whose name cannot be written, gets no
    line; it is reported, and listed in ``<stem>.unreadable.csv`` beside the output.

    Args:
        flip: predict the mirrored picture too and take the mean.
        accelerator: of one of several processes (``learner.start_accelerator``): they share the
            images, on one computer or on several with one file system.

    Returns:
        ``(file, problem)`` of each image that was left out.

    Raises:
        DataError: two images of one name, or none that can be read; or the output would replace
            something that unetlib did not write, or a data set's own masks.
    """
    path = Path(path)
    unreadable = path.with_name(f"{path.stem}.unreadable.csv")

    def finish(image: Path, probability: np.ndarray, size: tuple[int, int]) -> str:
        try:
            image.name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{image}: the csv file takes UTF-8 names only; rename it.") from None
        return rle_of_map(probability, size, predictor.threshold)

    def merge(lines: Iterator[tuple[Path, str]]) -> None:
        with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            file.write(HEADER)
            csv.writer(file, lineterminator="\n").writerows(
                (image.name, rle) for image, rle in lines
            )

    notes = path.with_name(f".{path.name}.parts")
    job = _Job(predictor, paths_of(images), notes, "name", flip, accelerator)
    _check_output(path, {path: HEADER, unreadable: UNREADABLE_HEADER})
    job.work(finish)
    return job.close(unreadable, merge)


class _Job:
    """Images to predict, and what is done of them.

    A line of notes for each finished image, in one file for each process: checksum, image,
    text or problem. A line that was cut off, or damaged, does not count. Notes of another model,
    threshold or way of writing are thrown away.
    """

    def __init__(
        self, predictor, images: list[Path], folder: Path, named_by: str, flip: bool, accelerator
    ):
        self.predictor, self.images, self.flip = predictor, images, flip
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.processes = accelerator.num_processes if accelerator else 1
        names = Counter(getattr(image, named_by) for image in self.images)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise DataError(f"{twice[0]}: two images of this name; predict their folders in turn.")
        self.keys = [_key(image) for image in self.images]
        self.folder = folder
        self.description = json.dumps(
            dict(
                model=file_hash(predictor.path),
                runs=predictor.name,
                threshold=predictor.threshold,
                flip=flip,
                named_by=named_by,
            )
        )

    def work(self, finish: Finish, is_there: Callable[[Path], bool] = lambda _: True) -> None:
        """Predict the images of this process that are not done yet, or whose result is gone."""
        if self.rank == 0:
            self._begin()
        if self.accelerator:  # one list for all, whatever happens to the folder meanwhile
            shared = [self.images, self.keys, self.description]
            self.images, self.keys, self.description = broadcast_object_list(shared)
        self._wait()
        found = self._done()
        done = {
            key
            for image, key in zip(self.images, self.keys, strict=True)
            if key in found and is_there(image)
        }
        mine = range(self.rank, len(self.images), self.processes)
        left = iter([index for index in mine if self.keys[index] not in done])
        bar = tqdm(
            desc="predicting",
            total=len(mine),
            initial=sum(self.keys[index] in done for index in mine),
            unit="img",
            disable=self.rank > 0,
        )
        path = self.folder / f"{uuid.uuid4().hex}.jsonl"
        with (
            bar,
            open(path, "w", encoding="utf-8", newline="\n") as notes,
            ThreadPoolExecutor() as pool,
        ):
            read = partial(pool.submit, self._read)
            ahead = deque(map(read, islice(left, AHEAD)))
            written = []
            while ahead or written:
                batch = [ahead.popleft().result() for _ in range(min(BATCH_SIZE, len(ahead)))]
                ahead.extend(map(read, islice(left, len(batch))))
                good = [one for one in batch if one[1] is not None]
                maps = []
                if good:
                    maps = self._predict(np.stack([one[1] for one in good]))
                # The masks of the batch before were written while the network computed this one.
                for index, result in written:
                    _note(notes, self.keys[index], *result.result())
                for index, grey, problem in batch:
                    if grey is None:
                        _note(notes, self.keys[index], None, problem)
                notes.flush()
                bar.update(len(written) + len(batch) - len(good))
                written = [
                    (index, pool.submit(_or_problem, finish, self.images[index], one, size))
                    for (index, _, size), one in zip(good, maps, strict=True)
                ]

    def close(
        self,
        unreadable: Path,
        merge: Callable[[Iterator[tuple[Path, str]]], None] | None = None,
    ) -> list[tuple[str, str]]:
        """Make one file of all processes' notes, list what could not be read, remove the notes."""
        self._wait()
        if self.rank > 0:
            return []
        done = self._done(with_problems=True)
        if not self._is_ours() or not done.keys() >= set(self.keys):
            raise DataError(
                f"{self.folder}: changed by another run while this one worked; run it again."
            )
        problems = [
            (str(image), done[key][2])
            for image, key in zip(self.images, self.keys, strict=True)
            if done[key][2] is not None
        ]
        if len(problems) == len(self.images):
            shutil.rmtree(self.folder)
            raise DataError(f"None of the {len(self.images)} images can be read: {problems[0][1]}")
        if merge is not None:
            merge(
                (image, _line(*done[key][:2])[1])
                for image, key in zip(self.images, self.keys, strict=True)
                if done[key][2] is None
            )
        if problems:
            with (
                whole_file(unreadable) as part,
                # A byte of a name that is not UTF-8 is listed as \udcXX.
                open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            ):
                file.write(UNREADABLE_HEADER)
                csv.writer(file, lineterminator="\n").writerows(problems)
        else:
            unreadable.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        return problems

    def _begin(self) -> None:
        if self._is_ours():
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)
        with whole_file(self.folder / "job.json") as part:
            part.write_text(self.description, encoding="utf-8")

    def _is_ours(self) -> bool:
        about = self.folder / "job.json"
        return about.is_file() and about.read_bytes() == self.description.encode()

    def _predict(self, images: np.ndarray) -> np.ndarray:
        """Maps of a batch, filled up: sums round differently in batches of different sizes, and a
        run that was stopped must end in the same file as one that was not.
        """
        missing = BATCH_SIZE - len(images) if len(self.images) > BATCH_SIZE else 0
        filled = np.pad(images, ((0, missing), (0, 0), (0, 0)))
        return self.predictor.predict_maps(filled, self.flip)[: len(images)]

    def _wait(self) -> None:
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def _read(self, index: int):
        """(index, small grey image, (width, height)), or (index, None, problem)."""
        image = self.images[index]
        try:
            return index, load_image(image, self.predictor.size), upright_size(image)
        except (DataError, *UNREADABLE) as error:
            return index, None, str(error)

    def _done(self, with_problems: bool = False) -> dict[str, tuple[Path, int, str | None]]:
        """Image key -> (file of notes, place in it, problem); without those that have a problem
        unless asked for, so that they are tried again.
        """
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            place = 0
            with open(path, "rb") as file:
                for line in file:
                    entry = _parse(line)
                    if entry and (entry[2] is None or (with_problems and entry[0] not in found)):
                        found[entry[0]] = path, place, entry[2]
                    place += len(line)
        return found


def _check_output(output: Path, signs: dict[Path, str]) -> None:
    """Refuse to replace what a data set calls its own, or what does not begin like ours."""
    foreign = [path for path, sign in signs.items() if not _replaceable(path, sign)]
    if output.resolve().name.lower() in TRUTH:
        raise DataError(f"{output}: named as a data set's own masks; choose another --output.")
    if foreign:
        raise DataError(f"{foreign[0]}: not written by unetlib, so kept; choose another --output.")


def _replaceable(path: Path, sign: str) -> bool:
    if not os.path.isfile(path):
        return not os.path.isdir(path)
    with open(path, "rb") as file:
        start = file.read(128).strip(b"\0")  # power that failed leaves nothing, or zeros
    return not start or sign.encode() in start


def _key(image: Path) -> str:
    """An image's path, time and size: another picture under the same name is another picture."""
    try:
        status = image.stat()
    except OSError:
        return str(image)
    return f"{image} {status.st_mtime_ns} {status.st_size}"


def _or_problem(finish: Finish, *arguments) -> tuple[str | None, str | None]:
    """(text, None) of an image, or (None, problem)."""
    try:
        return finish(*arguments), None
    except DataError as error:
        return None, str(error)


def _note(notes: TextIO, key: str, text: str | None, problem: str | None) -> None:
    if problem is not None:
        shown = problem.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
        tqdm.write(f"left out: {shown}", file=sys.stderr)
    entry = json.dumps([key, text, problem])
    notes.write(f"{zlib.crc32(entry.encode()):08x} {entry}\n")


def _parse(line: bytes) -> tuple[str, str | None, str | None] | None:
    checksum, _, entry = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(entry):
        return None
    return tuple(json.loads(entry))


def _line(path: Path, place: int) -> tuple[str, str | None, str | None]:
    with open(path, "rb") as file:
        file.seek(place)
        return _parse(file.readline())
