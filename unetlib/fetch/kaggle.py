"""Kaggle (everybody needs an own account), or a folder of its archives, -> a data folder."""

import shutil
import zipfile
from pathlib import Path
from zlib import crc32

from tqdm.auto import tqdm

from unetlib.fetch.samples import find_samples
from unetlib.pictures import DataError
from unetlib.support import folders

COMPETITION = "carvana-image-masking-challenge"
ARCHIVES = ("train.zip", "train_masks.zip", "train_masks.csv.zip", "metadata.csv.zip")
FULL_SET = (5088, 318)  # photos with masks, cars
MAX_RATIO = 100  # tables shrink about four-fold in a zip, a zip bomb a thousand-fold and more
SILENCE = 60  # seconds without a byte after which the server is given up
TOKEN = f"accept the rules at https://www.kaggle.com/c/{COMPETITION}/rules, and put a token of "
TOKEN += "https://www.kaggle.com/settings into KAGGLE_API_TOKEN or the file ~/.kaggle/access_token"
AGAIN = "check network and disk (KAGGLEHUB_CACHE names another), and start the same command again; "
AGAIN += "or fetch the archives in a browser and use `python -m unetlib download --from FOLDER`"


def download(target=None, test=False, source=None) -> Path:
    """Fetch the real data set, unpack it and check it; a second call continues an interrupted one.

    Returns the folder, for ``UNETLIB_DATA``. DataError: no access or network, a damaged archive, or
    an incomplete data set.

    Args:
        target: the folder to fill; None: ``data/carvana`` in the clone, or the current folder.
        test: also fetch and unpack ``test.zip`` (100,064 photos, several GB).
        source: a folder that holds the archives, perhaps of some of the cars; None: Kaggle.
    """
    target = Path(target or folders.RESULTS / "data" / "carvana").resolve()
    for name in (*ARCHIVES, "test.zip") if test else ARCHIVES:
        archive = _fetch(name) if source is None else _find_archive(Path(source), name)
        if archive is not None:
            unpack(archive, target)
    samples = find_samples(target).query("mask != ''")
    found = len(samples), samples["group"].nunique()
    print(f"{target}: {found[0]} photos with masks of {found[1]} cars")
    if source is None and found != FULL_SET:
        raise DataError(f"{target / 'train_masks'} or train lacks files: delete both, start again.")
    return target


def _fetch(name: str) -> Path:
    """Download one archive into kagglehub's own cache, where an interrupted one is continued."""
    import kagglehub  # these take a second to import, and only this function needs them
    import requests
    from kagglehub.exceptions import DataCorruptionError, UnauthenticatedError

    send = requests.Session.send  # kagglesdk sets no limit and would wait for ever
    requests.Session.send = lambda *args, **how: send(*args, **how | {"timeout": SILENCE})
    try:
        return Path(kagglehub.competition_download(COMPETITION, path=name))
    except (UnauthenticatedError, DataCorruptionError, OSError) as error:  # requests' are OSErrors
        status = getattr(getattr(error, "response", None), "status_code", "")
        why = status or getattr(error, "strerror", None) or type(error).__name__
        remedy = TOKEN if status in (401, 403) or isinstance(error, UnauthenticatedError) else AGAIN
        raise DataError(f"Kaggle's {name} cannot be fetched ({why}): {remedy}.") from None
    finally:
        requests.Session.send = send


def _find_archive(folder: Path, name: str) -> Path | None:
    places = folder / name, folder / name.replace("train.zip", "train_hq.zip")
    found = next((place for place in places if place.is_file()), None)
    if found is None and not name.endswith(".csv.zip"):
        raise DataError(f"{places[0]} does not exist: copy the competition's archive there.")
    return found


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a zip archive into a folder.

    Files of the same content are kept, others are replaced, each when it is complete: a stopped
    call leaves no half file, and the next one continues.
    DataError: it is damaged, or too large: for the disk, or more than 100 times when unpacked.
    """
    archive, target = Path(archive), Path(target)
    part, size = target / ".part", 0
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [one for one in opened.infolist() if not one.filename.startswith("__MACOSX/")]
            size = sum(member.file_size for member in members)  # zipfile never reads more of it
            if size > MAX_RATIO * archive.stat().st_size:
                raise zipfile.BadZipFile(f"its files are more than {MAX_RATIO} times as large")
            for member in tqdm(members, f"unpacking {archive.name}"):
                path = target / member.filename
                if member.is_dir() or (path.is_file() and crc32(path.read_bytes()) == member.CRC):
                    continue
                # zipfile takes "..", drives and leading slashes out of names and makes no links.
                complete = Path(opened.extract(member, part))
                path = target / complete.relative_to(part)
                path.parent.mkdir(parents=True, exist_ok=True)
                complete.replace(path)
    except Exception as error:  # damaged bytes raise some ten different ones
        problem = f"is damaged ({error}): delete it and download it again."
        if isinstance(error, OSError) and error.errno:  # a damaged bz2 raises one without a number
            problem = f"cannot be unpacked into {target} ({error.strerror}): "
            problem += f"{size / 1e9:.1f} GB must fit into a folder that you may write to."
        raise DataError(f"{archive} {problem}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
