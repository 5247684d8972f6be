"""The repository's address, which stands in pyproject.toml, wherever a line to install names it."""

import re
import tomllib
from pathlib import Path

PLACE = re.compile(r'(?<=unetlib @ git\+)[^"\\]+')  # in a notebook's file quotes are escaped


def address(project: Path) -> str:
    """What ``pyproject.toml`` names as the repository."""
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def renew(project: Path, paths: list[Path]) -> None:
    """Write the address into these files; all else in them stays as it is, to the byte."""
    for path in paths:
        text = path.read_bytes().decode()
        path.write_bytes(PLACE.sub(lambda _: address(project), text).encode())
