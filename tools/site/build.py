"""The course as a site: `make site` writes build/site, for any web server.

Sphinx makes the pages. Here is only what it lacks: where they come from, MathJax, a closing line.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]
BUILD = REPOSITORY / "build"
MARK = ".nojekyll"  # without it, GitHub's pages leave out the folders that begin with _


def build(output: Path) -> int:
    """Write the site into a folder, over that of before; returns 0, or what Sphinx ends with.

    Raises:
        SystemExit: Sphinx or npm is missing, or the folder holds something else; says what to do.
    """
    if output.exists() and not (output / MARK).exists():
        sys.exit(f"{output}: not a site made here, so kept; give the site a folder of its own.")
    try:
        from sphinx.cmd.build import main as sphinx
    except ImportError:
        sys.exit('The site needs Sphinx: .venv/bin/pip install -c constraints.txt -e ".[site]"')
    from mathjax import write_mathjax
    from sources import write_sources

    import unetlib

    start = time.monotonic()
    source = output.with_name(f"{output.name}-source")
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARK).touch()
    write_mathjax(source / "_static" / "mathjax", BUILD / "npm")
    write_sources(REPOSITORY, source)
    if unetlib.write_page(output / "page")["runtime"] != "runtime/":
        sys.exit("npm gives no ONNX Runtime Web for page/: check the network, and start again.")
    # Not only the first warning ends with an error: all of them are shown before.
    strict = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "--jobs=auto"]
    where = ["--conf-dir", Path(__file__).parent, "--doctree-dir", source / ".doctrees"]
    static = ["--define", f"html_static_path={source / '_static'}"]
    failed = sphinx([*strict, *static, *map(str, [*where, source, output])])
    if not failed:
        files = [path for path in output.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        pages = sum(path.suffix == ".html" for path in files)
        seconds = time.monotonic() - start
        print(f"{pages} pages, {megabytes:.1f} MB, {seconds:.0f} seconds: {output}")
        print(f"To look at it: python -m http.server --bind 127.0.0.1 --directory {output}")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BUILD / "site")
    os.environ.pop("UNETLIB_DATA", None)  # what the pages say is of the embedded set
    sys.exit(build(parser.parse_args().output.resolve()))
