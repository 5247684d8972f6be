"""A zip archive -> files in a folder, and never outside of it."""

import shutil
import zipfile
from pathlib import Path

from tqdm.auto import tqdm

from unetlib.pictures import DataError

MAX_RATIO = 100  # tables shrink about four-fold in a zip, a zip bomb a thousand-fold and more


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a zip archive into a folder.

    Files of the right size are kept, others are replaced, each when it is complete: an interrupted
    call leaves no half file, and the next one continues.

    Raises:
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
                if member.is_dir() or (path.is_file() and path.stat().st_size == member.file_size):
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
