"""Kaggle or a folder of archives -> a data folder in Carvana's layout; and small subsets of one.

The competition's files may not be passed on, so everybody fetches them with their own account:
https://www.kaggle.com/c/carvana-image-masking-challenge
"""

import lzma
import os
import shutil
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import requests
from PIL import Image
from tqdm.auto import tqdm

from unetlib import carvana, config
from unetlib.carvana import DataError
from unetlib.pictures import upright

COMPETITION = "carvana-image-masking-challenge"
RULES_URL = f"https://www.kaggle.com/c/{COMPETITION}/rules"
TOKEN_URL = "https://www.kaggle.com/settings"
ARCHIVES = ("train.zip", "train_masks.zip", "train_masks.csv.zip", "metadata.csv.zip")
FULL_PAIRS, FULL_CARS = 5088, 318
# Photos and GIFs hardly shrink in a zip and the tables shrink about four-fold; a zip bomb shrinks
# a thousand-fold and more.
MAX_RATIO = 100
# What zipfile was seen to raise while reading some 10,000 damaged archives.
DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, LookupError)
DAMAGED += (struct.error, zlib.error, lzma.LZMAError)
SILENCE = 60  # seconds after which a server that sends nothing is given up


def download(
    target: str | Path | None = None,
    subset: int | None = None,
    test: bool = False,
    source: str | Path | None = None,
) -> Path:
    """Fetch the real data set, unpack it and check that it is complete.

    A second call continues where the first was interrupted, and deletes nothing (see ``unpack``).

    Args:
        target: the folder to fill; None: ``data/carvana`` in the repository.
        subset: if given, also write that many cars at 480x320 into ``<target>-<subset>-cars``.
        test: also fetch and unpack ``test.zip`` (100,064 photos, several GB).
        source: a folder that holds the archives already; None: download them from Kaggle. Such a
            folder may hold part of the cars: what was found is printed, not demanded.

    Returns:
        The folder for ``UNETLIB_DATA``: the target, or the subset's folder if one was asked for.

    Raises:
        DataError: no access, no network, a damaged archive, or an incomplete data set.
    """
    target = Path(target or config.REPOSITORY / "data" / "carvana").resolve()
    wanted = [*ARCHIVES, "test.zip"] if test else list(ARCHIVES)
    for name in wanted:
        archive = _fetch(name) if source is None else _find_archive(Path(source), name)
        if archive is not None:
            unpack(archive, target)

    samples = carvana.find_samples(target)
    labelled = samples[samples["mask"] != ""]
    pairs, cars = len(labelled), labelled["car"].nunique()
    print(f"{target}: {pairs:,} photos with masks of {cars} cars")
    if source is None and (pairs, cars) != (FULL_PAIRS, FULL_CARS):
        raise DataError(
            f"{target} holds {pairs:,} pairs of {cars} cars, the full set {FULL_PAIRS:,} of "
            f"{FULL_CARS}: delete {target / 'train'} and {target / 'train_masks'} and start again."
        )
    if subset is None:
        return target
    return write_subset(target, target.with_name(f"{target.name}-{subset}-cars"), subset)


def _fetch(name: str) -> Path:
    """Download one archive into kagglehub's own cache, where an interrupted one is continued."""
    import kagglehub  # here: it takes a second to import and only this function needs it
    from kagglehub.exceptions import DataCorruptionError, UnauthenticatedError

    try:
        with _time_limit(SILENCE):
            return Path(kagglehub.competition_download(COMPETITION, path=name))
    except UnauthenticatedError:
        raise DataError(f"Kaggle knows no account on this computer: {_TOKEN_HELP}") from None
    except DataCorruptionError:
        raise DataError(f"{name} was damaged on its way: start the same command again.") from None
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise DataError(f"Kaggle does not accept the token (401): {_TOKEN_HELP}") from None
        if status == 403:
            raise DataError(
                f"Kaggle does not hand out {name} to this account (403): accept the competition's "
                f"rules in a browser at {RULES_URL}, then start the same command again."
            ) from None
        remedy = _BY_HAND if status == 404 else "try again later"
        raise DataError(f"Kaggle answered {status} for {name}: {remedy}.") from error
    except requests.RequestException as error:
        raise DataError(
            f"Kaggle cannot be reached, or {name} was cut off ({type(error).__name__}): check the "
            f"network and start the same command again, which continues; or {_BY_HAND}."
        ) from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be stored in {kagglehub.config.get_cache_folder()} ({error.strerror}): "
            "make room, or set KAGGLEHUB_CACHE to another folder, and start the same command again."
        ) from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Give up on a silent server: kagglesdk sets no limit, and requests would wait for ever."""
    send = requests.Session.send

    def send_in_time(session, request, **options):
        options["timeout"] = options.get("timeout") or seconds
        return send(session, request, **options)

    requests.Session.send = send_in_time
    try:
        yield
    finally:
        requests.Session.send = send


_BY_HAND = "download the archives in a browser and use `python -m unetlib download --from FOLDER`"


_TOKEN_HELP = (
    f"create an API token at {TOKEN_URL}, put it into the environment variable KAGGLE_API_TOKEN or "
    f"the file ~/.kaggle/access_token, and accept the competition's rules at {RULES_URL}."
)


def _find_archive(folder: Path, name: str) -> Path | None:
    alternatives = [name, "train_hq.zip"] if name == "train.zip" else [name]
    for path in (folder / alternative for alternative in alternatives):
        if path.is_file():
            return path
    if name.endswith(".csv.zip"):
        print(f"no {name} in {folder}: skipped")
        return None
    raise DataError(f"{folder / name} does not exist: copy that archive of the competition there.")


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a zip archive into a folder; files already there in full are kept.

    Every file is written under a temporary name and renamed when complete, so that an interrupted
    call leaves no half file and the next call continues. A file of another size, half unpacked by
    another program or changed by somebody, makes way: it stays beside the new one as ``*.old``.

    Raises:
        DataError: the archive is damaged, holds a link or a path that leaves the target, unpacks to
            more than 100 times its size, or does not fit on the disk. Nothing is written if a name
            or a size is at fault.
    """
    archive, target = Path(archive), Path(target)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                (member, _safe_path(archive, member))
                for member in opened.infolist()
                if not member.is_dir() and not member.filename.startswith("__MACOSX/")
            ]
            missing = [
                (member, target / path)
                for member, path in members
                if not _is_complete(target / path, member.file_size)
            ]
            target.mkdir(parents=True, exist_ok=True)
            _check_size(archive, target, [member for member, _ in members], missing)
            replaced = []
            for member, path in tqdm(missing, f"unpacking {archive.name}", disable=not missing):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                try:
                    with opened.open(member) as packed, part.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                    if path.exists():
                        replaced.append(path.with_name(f"{path.name}.{time.time_ns()}.old"))
                        path.rename(replaced[-1])
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
            if replaced:
                print(f"{len(replaced)} file(s) not as in {archive} were kept, as {replaced[0]}")
    except DataError:
        raise
    except (OSError, *DAMAGED) as error:
        if not isinstance(error, OSError) or error.errno is None:  # bz2's own OSError has no number
            raise DataError(
                f"{archive} is damaged ({error}): delete it and download it again."
            ) from error
        raise DataError(
            f"{archive} cannot be unpacked into {target} ({error.strerror}): make room, or choose "
            "a folder that you may write to; then start the same command again."
        ) from error


def _safe_path(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    """The member's path below the target; zip names use forward slashes on every system."""
    path = PurePosixPath(member.filename)
    suspicious = path.is_absolute() or ".." in path.parts or set("\\:") & set(member.filename)
    if suspicious or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(
            f"{archive} holds {member.filename!r}, a link or a path that leaves the folder: do not "
            "use this archive, take the one from Kaggle."
        )
    return path


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_size(archive: Path, target: Path, members, missing) -> None:
    # zipfile never reads more of a member than the size it declares, so this is the true size.
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_RATIO * archive.stat().st_size:
        raise DataError(
            f"{archive} would unpack to {unpacked / 1e9:.1f} GB, more than {MAX_RATIO} times its "
            "size: do not use this archive, take the one from Kaggle."
        )
    needed, free = sum(member.file_size for member, _ in missing), shutil.disk_usage(target).free
    if needed > free:
        raise DataError(
            f"{archive} needs {needed / 1e9:.1f} GB but {target} has {free / 1e9:.1f} GB free: "
            "make room or choose another target."
        )


def write_subset(
    source: str | Path,
    target: str | Path,
    cars: int,
    size: tuple[int, int] = (480, 320),
    seed: int = 0,
) -> Path:
    """Write a downsampled part of a data set in the same layout.

    Photos are reduced by area averaging; a mask pixel is car if at least half of its area was.
    ``train_masks.csv`` is encoded anew from the reduced masks. A quarter as many test cars come
    along if the source has ``test/``. The source is only read.

    Args:
        source: a folder in Carvana's layout.
        target: a new or empty folder; it appears when everything is written, not before.
        cars: how many cars with masks, drawn at random.
        size: (width, height) in pixels of every picture.
        seed: which cars; the same seed draws the same ones.

    Returns:
        The target.

    Raises:
        DataError: too few cars in the source, or a target that is not empty or inside the source.
    """
    source, target = Path(source), Path(target).resolve()
    if target.is_relative_to(source.resolve()):
        raise DataError(f"{target} lies inside the source {source}: choose another folder.")
    if target == Path.cwd():
        raise DataError(f"{target} is the folder you are in: name a new one.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is not empty: choose another folder or delete it first.")
    samples = carvana.find_samples(source)
    has_mask = samples["mask"] != ""
    most = samples.loc[has_mask, "car"].nunique()
    if not 1 <= cars <= most:
        raise DataError(f"{source} has {most} cars with masks: ask for 1 to {most}, not {cars}.")
    chosen = _draw(samples.loc[has_mask, "car"], cars, seed)
    test_cars = _draw(samples.loc[~has_mask, "car"], cars // 4, seed)
    rows = samples[samples["car"].isin(chosen + test_cars)]

    with _new_folder(target) as folder:
        rles = []
        for row in tqdm(rows.itertuples(), "writing", len(rows)):
            photo = folder / ("train" if row.mask else "test") / f"{row.id}.jpg"
            photo.parent.mkdir(exist_ok=True)
            with Image.open(row.image) as opened:
                upright(opened).convert("RGB").resize(size, Image.Resampling.BOX).save(
                    photo, quality=92
                )
            if row.mask:
                mask = _reduce_mask(carvana.load_mask(row.mask), size)
                _save_mask(mask, folder / "train_masks" / f"{row.id}_mask.gif")
                rles.append((photo.name, carvana.rle_encode(mask)))
        table = pd.DataFrame(rles, columns=["img", "rle_mask"])
        table.to_csv(folder / "train_masks.csv", index=False)
        metadata = carvana.read_metadata(source)
        if metadata is not None:
            metadata = metadata[metadata["id"].isin(rows["car"])]
            metadata.to_csv(folder / "metadata.csv", index=False)
    print(f"{target}: {len(rles)} photos with masks of {cars} cars at {size[0]}x{size[1]}")
    return target


def _draw(cars: pd.Series, count: int, seed: int) -> list[str]:
    names = np.array(sorted(cars.unique()), dtype=object)
    return list(np.random.default_rng(seed).permutation(names)[:count])


def _reduce_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boolean ``(H, W)`` -> boolean ``(size[1], size[0])``: at least half of the area."""
    coverage = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(coverage) >= 0.5


def _save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a palette GIF with the indices 0 (background) and 1 (car), as Carvana's are."""
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path, optimize=False)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` if the block ends without an error, and else vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        if target.exists():
            target.rmdir()
        os.replace(folder, target)
