"""Images -> masks of a whole folder: PNG files or Kaggle's submission, safe to stop.

Reading images, the network, and writing masks overlap. Each finished image is a file: its mask, or
its run-length code in a folder beside the csv file. So a stopped run finds again what it has
finished, and several processes share the images.
"""

import csv
import errno
import json
import os
import shutil
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from unetlib.deploy.images import HEADER, UNREADABLE_HEADER, Paths, code_files, mask_files
from unetlib.deploy.manifest import file_hash
from unetlib.deploy.predict import BATCH_SIZE, Predictor, enlarge, save_mask
from unetlib.masks import rle_encode
from unetlib.pictures import UNREADABLE, DataError, image_size, load_image
from unetlib.support.files import whole_file


def write_masks(
    predictor: Predictor, images: Paths, folder: str | Path, *, flip=False, accelerator=None
) -> list[tuple[str, str]]:
    """Write each image's mask as ``<stem>_mask.png`` (0/255, original size).

    Arguments, result and errors as for ``write_submission``; what is left out is listed in
    ``unreadable.csv`` among the masks. Only masks written here are replaced.
    """
    folder, results = Path(folder), mask_files(images, folder)
    write, parts = (lambda mask, path, _: save_mask(mask, path)), folder / ".parts"
    job = _Job(predictor, results, parts, write, flip, accelerator)
    return job.run(folder / "unreadable.csv")


def write_submission(
    predictor: Predictor, images: Paths, path: str | Path, *, flip=False, accelerator=None
) -> list[tuple[str, str]]:
    """Write Kaggle's submission file, columns ``img,rle_mask``, a line per image in order.

    The file appears whole or not at all. A run that was stopped or killed goes on after the last
    images that it finished. An image that cannot be read, or whose name cannot be written, gets no
    line; it is reported, and listed in ``<stem>.unreadable.csv`` beside the output.

    Args:
        flip: predict the mirrored picture too and take the mean.
        accelerator: of one of several processes (``support.processes.start_accelerator``): they
            share the images, on one computer or on several with one file system.

    Returns:
        ``(file, problem)`` of each image that was left out; of several processes the first has
        the list, the others an empty one.

    Raises:
        DataError: two images of one name, or none that can be read; or the output would replace
            something that unetlib did not write, or a data set's own masks; or another run has
            begun to write the same output.
    """
    path, results = Path(path), code_files(images, path)
    parts, unreadable = path.with_name(f".{path.name}.parts"), f"{path.stem}.unreadable.csv"

    def write(mask: np.ndarray, path: Path, image: Path) -> None:
        image.name.encode()  # the csv file takes UTF-8 only
        path.write_text(rle_encode(mask) + "\n", newline="\n")

    def merge(finished: list[Path]) -> None:
        codes = ((image.name, results[image].read_text().strip()) for image in finished)
        _write_csv(path, HEADER, codes)

    job = _Job(predictor, results, parts, write, flip, accelerator)
    return job.run(path.with_name(unreadable), merge)


class _Job:
    """Images to predict with one model, each into the file that ``results`` names.

    In the folder ``parts``, ``job.json`` says in one line how they are predicted; a result that is
    younger than it is of this job. A run that begins another job removes the folder first.
    """

    def __init__(
        self, predictor, results: dict[Path, Path], parts: Path, write: Callable, flip, accelerator
    ):
        self.predictor, self.results, self.parts, self.write = predictor, results, parts, write
        self.flip, self.accelerator, self.job_file = flip, accelerator, parts / "job.json"
        self.rank = accelerator.process_index if accelerator else 0
        self.problems: dict[Path, str] = {}
        about = dict(model=file_hash(predictor.path), predictor=predictor.name, flip=flip)
        # By number too: a folder that took another one's place may hold images of the same names.
        folders = {folder.resolve() for folder in {image.parent for image in results}}
        folders = sorted((str(one), one.stat().st_ino) for one in folders if one.is_dir())
        self.about = json.dumps(about | dict(threshold=predictor.threshold, folders=folders))

    def run(
        self, unreadable: Path, merge: Callable[[list[Path]], None] | None = None
    ) -> list[tuple[str, str]]:
        """Predict what is not done yet, together with the other processes; then end the job, so
        that a repeated command predicts everything again.
        """
        try:
            if self.rank == 0 and not self._is_ours():
                if self.parts.exists():
                    self._remove_parts()
                (self.parts / "codes").mkdir(parents=True)
                with whole_file(self.job_file) as part:
                    part.write_text(self.about, encoding="utf-8")
                # Masks of an earlier job are older, unless the clock was put back since.
                old = [result for result in self.results.values() if os.path.isfile(result)]
                newest = max(file.stat().st_mtime_ns for file in [self.job_file, *old])
                os.utime(self.job_file, ns=(newest, newest))
            if self.accelerator:  # one list for all, whatever happens to the images meanwhile
                (self.results,) = broadcast_object_list([self.results])
                self.accelerator.wait_for_everyone()
            self._predict_share()
            if self.accelerator:
                for problems in gather_object([self.problems]):
                    self.problems |= problems
            if self.rank > 0:
                return []
            if not self._is_ours():
                raise FileNotFoundError
            left_out = [(str(one), why) for one in self.results if (why := self.problems.get(one))]
            finished = [image for image in self.results if image not in self.problems]
            if merge is not None and finished:
                merge(finished)
        except FileNotFoundError:
            raise DataError(f"{self.parts}: replaced by another run; run it again.") from None
        self._remove_parts()
        if left_out and not finished:
            raise DataError(f"None of the {len(left_out)} images can be read: {left_out[0][1]}")
        if left_out:
            _write_csv(unreadable, UNREADABLE_HEADER, left_out)
        else:
            unreadable.unlink(missing_ok=True)
        return left_out

    def _remove_parts(self) -> None:
        """Renamed first, because another run's threads may be writing into the folder."""
        gone = self.parts.rename(self.parts.with_name(f"{self.parts.name}.{uuid.uuid4().hex}"))
        shutil.rmtree(gone, ignore_errors=True)

    def _is_ours(self) -> bool:
        return self.job_file.is_file() and self.job_file.read_bytes() == self.about.encode()

    def _is_done(self, image: Path, since: int) -> bool:
        """Whether an image's result is whole, and younger than the job and the image.

        Equally old does not count: a file system's clock may tick only every few milliseconds.
        """
        try:
            result, source, link = self.results[image].stat(), image.stat(), image.lstat()
            end = self.results[image].read_bytes()[-1:]  # a power failure may leave zeros, or less
        except OSError:
            return False
        changed = max(source.st_mtime_ns, source.st_ctime_ns, link.st_ctime_ns)
        return end in (b"\n", b"\x82") and result.st_mtime_ns > max(since, changed)

    def _predict_share(self) -> None:
        """Predict this process's images; threads read the next and write the last ones."""
        world_size = self.accelerator.num_processes if self.accelerator else 1
        mine, since = list(self.results)[self.rank :: world_size], self.job_file.stat().st_mtime_ns
        left = [image for image in mine if not self._is_done(image, since)]
        batches = (left[at : at + BATCH_SIZE] for at in range(0, len(left), BATCH_SIZE))
        counts = dict(total=len(mine), initial=len(mine) - len(left), disable=self.rank > 0)
        with tqdm(desc="predicting", unit="img", **counts) as bar, ThreadPoolExecutor() as pool:
            begun = ([(one, pool.submit(self._read, one)) for one in batch] for batch in batches)
            reading, writing = deque(islice(begun, 2)), []
            while reading:
                batch = reading.popleft()
                good = [(one, got) for one, got in self._results(batch) if got]
                reading.extend(islice(begun, 1))
                maps = self._predict([picture for _, (picture, _) in good])
                list(self._results(writing))  # written while the network computed
                writing = [
                    (image, pool.submit(self._finish, image, probability, size))
                    for (image, (_, size)), probability in zip(good, maps, strict=True)
                ]
                bar.update(len(batch))
            list(self._results(writing))

    def _results(self, futures: list[tuple[Path, Future]]) -> Iterable[tuple[Path, object]]:
        """What the threads returned; None, and a note, where they could not."""
        for image, future in futures:
            try:
                yield image, future.result()
            except DataError as error:
                self.problems[image] = str(error)
                shown = str(error).encode(errors="backslashreplace").decode()  # not always UTF-8
                tqdm.write(f"left out: {shown}", file=sys.stderr)
                yield image, None

    def _read(self, image: Path) -> tuple[np.ndarray, tuple[int, int]]:
        try:
            return load_image(image, self.predictor.size, self.predictor.colour), image_size(image)
        except UNREADABLE as error:
            raise error if isinstance(error, DataError) else DataError(str(error)) from None

    def _predict(self, images: list[np.ndarray]) -> np.ndarray:
        if not images:
            return []
        # Batches are filled up: sums round differently in batches of different sizes, and a run
        # that was stopped must end in the same files as one that was not.
        missing = min(BATCH_SIZE, len(self.results)) - len(images)
        filled = np.pad(np.stack(images), [(0, missing), *[(0, 0)] * images[0].ndim])
        return self.predictor.predict_maps(filled, self.flip)[: len(images)]

    def _finish(self, image: Path, probability: np.ndarray, size: tuple[int, int]) -> None:
        mask = enlarge(probability, size) > self.predictor.threshold
        unfinished, result = self.parts / uuid.uuid4().hex, self.results[image]
        try:
            self.write(mask, unfinished, image)
            if not self._is_ours():
                raise FileNotFoundError
            os.replace(unfinished, result)
        except (UnicodeEncodeError, OSError) as error:
            named = errno.ENAMETOOLONG, errno.EILSEQ
            if isinstance(error, OSError) and error.errno not in named:
                raise
            raise DataError(f"{result}: no file or csv line takes this name; rename it.") from None


def _write_csv(path: Path, header: str, rows: Iterable[tuple[str, str]]) -> None:
    with (
        whole_file(path) as part,
        # A byte of a name that is not UTF-8 is written as \udcXX.
        open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(header)
        csv.writer(file, lineterminator="\n").writerows(rows)
