"""Kaggle, or a folder of archives, -> a data folder in Carvana's layout.

The competition's files may not be passed on: everybody fetches them with their own account.
"""

from pathlib import Path

from unetlib import config
from unetlib.fetch.archive import unpack
from unetlib.fetch.samples import find_samples
from unetlib.fetch.subset import write_subset
from unetlib.pictures import DataError

COMPETITION = "carvana-image-masking-challenge"
ARCHIVES = ("train.zip", "train_masks.zip", "train_masks.csv.zip", "metadata.csv.zip")
FULL_SET = (5088, 318)  # photos with masks, cars
SILENCE = 60  # seconds without a byte after which the server is given up
RULES = f"accept the competition's rules at https://www.kaggle.com/c/{COMPETITION}/rules"
TOKEN = (
    "create an API token at https://www.kaggle.com/settings, put it into the environment variable "
    f"KAGGLE_API_TOKEN or the file ~/.kaggle/access_token, and {RULES}"
)
BY_HAND = "download the archives in a browser and use `python -m unetlib download --from FOLDER`"
REMEDIES = {401: TOKEN, 403: RULES, 404: BY_HAND}  # by HTTP status


def download(
    target: str | Path | None = None,
    subset: int | None = None,
    test: bool = False,
    source: str | Path | None = None,
) -> Path:
    """Fetch the real data set, unpack it and check that it is complete.

    A second call continues where the first was interrupted (see ``unpack``).

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
    for name in (*ARCHIVES, "test.zip") if test else ARCHIVES:
        archive = _fetch(name) if source is None else _find_archive(Path(source), name)
        if archive is not None:
            unpack(archive, target)
    samples = find_samples(target).query("mask != ''")
    found = len(samples), samples["group"].nunique()
    print(
        f"{target}: {found[0]:,} photos with masks of {found[1]} cars (the full set: 5,088 of 318)"
    )
    if source is None and found != FULL_SET:
        raise DataError(
            f"{target} is incomplete: delete {target / 'train'} and {target / 'train_masks'}, and "
            "start the same command again."
        )
    if subset is None:
        return target
    return write_subset(target, target.with_name(f"{target.name}-{subset}-cars"), subset)


def _fetch(name: str) -> Path:
    """Download one archive into kagglehub's own cache, where an interrupted one is continued."""
    import kagglehub  # these take a second to import, and only this function needs them
    import requests
    from kagglehub.exceptions import DataCorruptionError, UnauthenticatedError

    send = requests.Session.send

    def send_in_time(session, request, **options):
        options["timeout"] = options.get("timeout") or SILENCE
        return send(session, request, **options)

    requests.Session.send = send_in_time  # kagglesdk sets no limit and would wait for ever
    try:
        return Path(kagglehub.competition_download(COMPETITION, path=name))
    except UnauthenticatedError:
        problem = f"Kaggle knows no account on this computer: {TOKEN}"
    except DataCorruptionError:
        problem = f"{name} was damaged on its way: start the same command again"
    except requests.HTTPError as error:
        status = getattr(error.response, "status_code", "with an error")
        problem = f"Kaggle answered {status} for {name}: {REMEDIES.get(status, 'try again later')}"
    except OSError as error:  # of the network (requests' own exceptions) or of the disk
        problem = (
            f"{name} cannot be fetched into {kagglehub.config.get_cache_folder()} "
            f"({error.strerror or type(error).__name__}): check the network and the room on that "
            "disk (KAGGLEHUB_CACHE names another folder), then start the same command again, which "
            f"continues; or {BY_HAND}"
        )
    finally:
        requests.Session.send = send
    raise DataError(f"{problem}.")


def _find_archive(folder: Path, name: str) -> Path | None:
    found = [name, "train_hq.zip"] if name == "train.zip" else [name]
    found = [folder / one for one in found if (folder / one).is_file()]
    if not found and not name.endswith(".csv.zip"):
        raise DataError(f"{folder / name} does not exist: copy the competition's archive there.")
    return found[0] if found else None
