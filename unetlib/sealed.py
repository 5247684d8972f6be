"""Tables and settings -> text files that notice damage: CSV and JSON with their own SHA-256.

A checksum in a file of its own would be behind, or ahead, when a process is killed between the two.
"""

import hashlib
import io
import json
from pathlib import Path

import pandas as pd

from unetlib.config import whole_file

SEAL = "# sha256 of the lines below: "
KEY = "sha256"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spelled(content: dict) -> str:
    return json.dumps(content, sort_keys=True)


def write_json(path: Path, content: dict) -> None:
    """Write plain values, and under ``sha256`` the checksum of all others."""
    sealed = content | {KEY: _sha256(_spelled(content))}
    with whole_file(path) as part:
        part.write_text(json.dumps(sealed, indent=1), encoding="utf-8")


def read_json(path: Path, optional: bool = False) -> dict:
    """Read what ``write_json`` wrote.

    Args:
        optional: the checksum may be absent, as in old files; one that is there must be right.

    Raises:
        FileNotFoundError: no such file.
        ValueError: changed or damaged.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is damaged")
    claimed = content.pop(KEY, None)
    if claimed != _sha256(_spelled(content)) and not (optional and claimed is None):
        raise ValueError(f"{path.name} was changed or damaged")
    return content


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV; the first line is a comment, the checksum of the others."""
    text = table.to_csv(index=False, lineterminator="\n")
    with whole_file(path) as part:
        part.write_text(f"{SEAL}{_sha256(text)}\n{text}", encoding="utf-8", newline="\n")


def read_csv(path: Path) -> tuple[pd.DataFrame, bool]:
    """Read what ``write_csv`` wrote; also whether it had a checksum, which old files lack.

    Raises:
        FileNotFoundError: no such file.
        ValueError: changed or damaged.
    """
    text = path.read_bytes().decode()
    first, _, rest = text.partition("\n")
    sealed = first.startswith(SEAL)
    if sealed and first != SEAL + _sha256(rest):
        raise ValueError(f"{path.name} was changed or damaged")
    return pd.read_csv(io.StringIO(rest if sealed else text)), sealed
