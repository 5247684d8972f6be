"""Images -> masks of a whole folder: PNG files or Kaggle's submission, safe to stop.

Reading images, the network, and writing masks overlap. Each finished image is a file in a hidden
folder beside the output, named by all that it depends on: image, model and settings. So a stopped
run finds again what it has finished and nothing else, and several processes share the images.
"""

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from unetlib.deploy.images import HEADER, UNREADABLE_HEADER, Paths, code_files, is_ours, mask_files
from unetlib.deploy.predict import Predictor, enlarge
from unetlib.masks import rle_encode
from unetlib.pictures import DataError, image_size, load_image, opening, upright
from unetlib.support.files import file_hash, whole_file
from unetlib.support.memory import stamp


def write_masks(
    predictor: Predictor, images: Paths, folder, *, flip=False, overlay=False, cutout=False
) -> list[tuple[str, str]]:
    """Write each image's mask as ``<stem>_mask.png`` (0/255, original size), all at the end.

    If asked for, also ``<stem>_overlay.png`` (``overlaid``), ``<stem>_cutout.png`` (``cut_out``).
    Otherwise as ``write_submission``; what is left out is listed in ``unreadable.csv`` there. Only
    files written here are replaced, or removed if they show an older mask.
    """
    drawn = [("cutout", cut_out)] * cutout + [("overlay", overlaid)] * overlay
    kinds = ["mask", *dict(drawn)]  # by the length of their names
    folder, results, signature = Path(folder), mask_files(images, folder, kinds), PngInfo()
    signature.add_text("Software", "unetlib")  # MASK_SIGN

    def write(mask: np.ndarray, parts: list[Path], image: Path) -> None:
        with suppress(FileNotFoundError):
            results[image][-1].stat()  # an error if the name is impossible
        Image.fromarray(mask).save(parts[0], "PNG", pnginfo=signature)
        if drawn:
            with opening(image) as opened:
                picture = upright(opened)
            profile = picture.info.get("icc_profile") or b""
            fits = picture.mode == "RGB" and len(profile) < 2**13  # MASK_SIGN stands after it
            about = dict(pnginfo=signature, icc_profile=profile if fits else b"")
            for (_, draw), part in zip(drawn, parts[1:], strict=True):
                draw(picture, mask).save(part, "PNG", **about)

    def finish(parts: dict[Path, list[Path]]) -> None:
        for image, files in parts.items():
            mask = results[image][0]
            same = mask.is_file() and mask.read_bytes() == files[0].read_bytes()
            for pair in zip(files, results[image], strict=True):
                os.replace(*pair)
            for kind in () if same else {"cutout", "overlay"} - {*kinds}:  # of an older mask
                if is_ours(old := folder / f"{image.stem}_{kind}.png"):
                    old.unlink()

    job = _Job(predictor, list(results), folder / ".parts", write, flip, kinds)
    return job.run(finish, folder / "unreadable.csv")


def write_submission(
    predictor: Predictor, images: Paths, path: str | Path, *, flip=False
) -> list[tuple[str, str]]:
    """Write Kaggle's submission, ``img,rle_mask`` of each image in order; gzip packs ``.csv.gz``.

    The file appears whole or not at all; what was stopped or killed goes on where it was. An image
    that cannot be read, or whose name cannot be written, is listed in ``<stem>.unreadable.csv``.
    Returns ``(file, problem)`` of each of these. ``flip``: predict the mirrored picture too and
    take the mean. Several processes (``support.processes.start_accelerator``), on one computer or
    on several with one file system, share the images; all but the first return [].

    Raises:
        DataError: two images of one name, or none that can be read; or an output of another kind's
            name, or that would replace something that unetlib did not write, or a data set's own
            masks; or another run has finished the same output meanwhile.
    """
    path, (images, unreadable) = Path(path), code_files(images, path)

    def write(mask: np.ndarray, parts: list[Path], image: Path) -> None:
        image.name.encode()  # the csv file takes UTF-8 only
        parts[0].write_text(rle_encode(mask) + "\n", newline="\n")

    def finish(parts: dict[Path, list[Path]]) -> None:
        codes = ((image.name, part.read_text().strip()) for image, (part,) in parts.items())
        _write_csv(path, HEADER, codes)

    job = _Job(predictor, images, path.with_name(f".{path.name}.parts"), write, flip)
    return job.run(finish, unreadable)


def overlaid(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture in RGB, what a boolean mask ``(H, W)`` shows tinted, and its outline drawn."""
    box = ImageFilter.BoxBlur(max(1, round(max(mask.shape) / 600)))  # seen in small views, too
    inside = np.asarray(Image.fromarray(mask).convert("L").filter(box)) == 255
    strength = Image.fromarray(np.where(mask & ~inside, 255, mask * 115).astype(np.uint8))
    blue = Image.new("RGB", picture.size, "#0072B2")  # plots.CAR; importing matplotlib is slow
    return Image.composite(blue, picture.convert("RGB"), strength)


def cut_out(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture in RGBA, transparent but for a boolean mask ``(H, W)``, soft by a pixel."""
    cut = picture.convert("RGB")
    cut.putalpha(Image.fromarray(mask).convert("L").filter(ImageFilter.BoxBlur(1)))
    return cut


class _Job:
    """Images to predict with one model, each into a file of each kind in the folder ``parts``."""

    def __init__(self, predictor, images, parts, write: Callable, flip, kinds=("",)):
        self.predictor, self.parts, self.write, self.flip = predictor, parts, write, flip
        self.processes, self.problems = PartialState(), {}
        how = [file_hash(predictor.path), predictor.name, predictor.threshold, flip]
        how += [predictor.batch_size]  # larger on a GPU, which rounds otherwise
        facts = ([*how, one.name, stamp(one) if one.exists() else None] for one in images)
        keys = (hashlib.sha256(json.dumps(known).encode()).hexdigest() for known in facts)
        files = ([parts / key, *(parts / f"{key}.{one}" for one in kinds[1:])] for key in keys)
        self.results = dict(zip(images, files, strict=True))

    def run(self, finish: Callable[[dict[Path, list[Path]]], None], unreadable: Path) -> list:
        """Predict what is left, with the other processes; then end all jobs of this output."""
        if self.processes.is_main_process:
            self.parts.mkdir(parents=True, exist_ok=True)
        try:  # one list for all, whatever happens to the images meanwhile
            (self.results,) = broadcast_object_list([self.results])
            self._predict_share()
            self.problems = dict(gather_object([*self.problems.items()]))
            if not self.processes.is_main_process:
                return []
            left_out = [(str(one), why) for one in self.results if (why := self.problems.get(one))]
            # Renamed first: another run into the same output may be finishing, or writing there.
            gone = self.parts.rename(f"{self.parts}.{uuid.uuid4().hex}")
            whole = {one: [gone / part.name for part in self.results[one]] for one in self.results}
            done = {one: parts for one, parts in whole.items() if one not in self.problems}
            try:
                for part in chain(*done.values()):  # before any mask is moved
                    part.stat()
                if done:
                    finish(done)
            except BaseException:  # a stop, or a full disk: the next try goes on from here
                with suppress(OSError):
                    gone.rename(self.parts)
                raise
        except FileNotFoundError:
            raise DataError(f"{self.parts}: removed by another run; run it again.") from None
        shutil.rmtree(gone, ignore_errors=True)
        if left_out and not done:
            raise DataError(f"None of the {len(left_out)} images can be read: {left_out[0][1]}")
        unreadable.unlink(missing_ok=True)
        if left_out:
            _write_csv(unreadable, UNREADABLE_HEADER, left_out)
        return left_out

    def _predict_share(self) -> None:
        """Predict this process's images; threads read the next and write the last ones."""
        rank = self.processes.process_index
        mine = list(self.results)[rank :: self.processes.num_processes]
        left = [image for image in mine if not all(map(_is_whole, self.results[image]))]
        size = self.predictor.batch_size
        batches = (left[at : at + size] for at in range(0, len(left), size))
        counts = dict(total=len(mine), initial=len(mine) - len(left), disable=rank > 0)
        with tqdm(desc="predicting", unit="img", **counts) as bar, ThreadPoolExecutor() as pool:
            begun = ([(one, pool.submit(self._read, one)) for one in batch] for batch in batches)
            reading, writing = deque(islice(begun, 2)), []
            while reading:
                batch = reading.popleft()
                good = [(one, got) for one, got in self._results(batch) if got]
                reading.extend(islice(begun, 1))
                maps = self._predict([picture for _, (picture, _) in good]) if good else []
                list(self._results(writing))  # written while the network computed
                todo = [(one, size, p) for (one, (_, size)), p in zip(good, maps, strict=True)]
                writing = [(one[0], pool.submit(self._finish, *one)) for one in todo]
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
        return load_image(image, self.predictor.size, self.predictor.colour), image_size(image)

    def _predict(self, images: list[np.ndarray]) -> np.ndarray:
        # Batches are filled up: sums round differently in batches of different sizes, and a run
        # that was stopped must end in the same files as one that was not.
        missing = min(self.predictor.batch_size, len(self.results)) - len(images)
        filled = np.pad(np.stack(images), [(0, missing), *[(0, 0)] * images[0].ndim])
        return self.predictor.predict_maps(filled, self.flip)[: len(images)]

    def _finish(self, image: Path, size: tuple[int, int], probability: np.ndarray) -> None:
        mask, parts = enlarge(probability, size) > self.predictor.threshold, self.results[image]
        try:
            self.write(mask, unfinished := [self.parts / uuid.uuid4().hex for _ in parts], image)
            for pair in zip(unfinished, parts, strict=True):
                os.replace(*pair)
        except (UnicodeEncodeError, OSError) as error:
            if getattr(error, "errno", errno.EILSEQ) not in (errno.ENAMETOOLONG, errno.EILSEQ):
                raise
            raise DataError(f"{image}: no file or csv line takes this name; rename it.") from None


def _is_whole(part: Path) -> bool:
    """Whether a result is there; a power failure may leave zeros, or less."""
    return part.exists() and part.read_bytes()[-1:] in (b"\n", b"\x82")


def _write_csv(path: Path, header: str, rows: Iterable[tuple[str, str]]) -> None:
    # A byte of a name that is not UTF-8 is written as \udcXX.
    with whole_file(path) as part, open(part, "wb") as file:
        if path.suffix.lower() == ".gz":  # no time and no name inside: equal masks, equal files
            file = gzip.GzipFile("", "wb", 6, file, mtime=0)
        with io.TextIOWrapper(file, "utf-8", "backslashreplace", "") as text:
            text.write(header)
            csv.writer(text, lineterminator="\n").writerows(rows)
