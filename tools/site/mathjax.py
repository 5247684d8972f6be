"""MathJax from npm, so that a page loads nothing from elsewhere."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "3.2.2"
# As npm itself writes it in a package-lock.json: `npm view mathjax@3.2.2 dist.integrity`.
INTEGRITY = (
    "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/"
    "O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
)
# Of its 15 MB: TeX to HTML, in one file, and the fonts, which it looks for beside itself.
NEEDED = ("package/es5/tex-chtml.js", "package/es5/output/chtml/fonts/woff-v2/")


def write_mathjax(folder: Path, cache: Path) -> None:
    """Write what the pages need of MathJax, from the cache or else from npm.

    Raises:
        SystemExit: npm is missing, or gives no package or another one.
    """
    packed = cache / f"mathjax-{VERSION}.tgz"
    if not packed.exists():
        _download(packed)
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        packed.unlink()
        sys.exit(f"{packed} was not MathJax {VERSION} as known here and is deleted: start again.")
    with tarfile.open(packed) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(NEEDED):
                target = folder / member.name.removeprefix("package/es5/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())


def _download(packed: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("The site takes MathJax from npm, which is missing: install Node.js (nodejs.org).")
    packed.parent.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"mathjax@{VERSION}", "--silent", "--pack-destination", packed.parent]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode or not packed.exists():
        why = (ended.stderr or ended.stdout).strip().splitlines()[-1:] or ["no reason given"]
        sys.exit(f"npm gives no mathjax@{VERSION} ({why[0]}): check the network, and start again.")
