"""A trained model -> a folder with a web page that segments in the browser; a server for it."""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
import webbrowser
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from unetlib.carvana import find_samples, split_by_group
from unetlib.deploy.images import is_ours
from unetlib.deploy.manifest import FILES, read_manifest
from unetlib.pictures import DataError, sides
from unetlib.recipe import PRETRAINED
from unetlib.support.errors import ModelFileError
from unetlib.support.files import file_hash, whole_file
from unetlib.support.folders import REPOSITORY, cache_dir, models_dir, page_dir

WEB = Path(__file__).parent / "web"
FACTS, PAIR = "page.json", [FILES["int8"], FILES["onnx"]]
EXAMPLES = [3, 21, 47, 79]  # of the embedded validation pictures: four cars


def write_page(folder: str | Path | None = None, models: str | Path | None = None) -> dict:
    """Write a page that segments photos in the visitor's browser, for any web server to offer.

    Args:
        folder: where; None: ``support.folders.page_dir()``. A page that is there is written anew.
        models: a folder that ``export_all`` wrote; None: ``models_dir()`` or, where it has no int8
            and fp32 ONNX files of one training, the weights in ``data/pretrained``.

    Returns:
        ``page``, its file; ``model``, the folder that it is from; ``runtime``, where the page finds
        ONNX Runtime Web (without npm a public address); ``files``, all it may load: name -> bytes.

    Raises:
        DataError: the folder holds other files. ModelFileError: ``models`` has no such pair, or a
            damaged one; or npm gave another ONNX Runtime Web than the known one.
    """
    folder = page_dir() if folder is None else Path(folder)
    taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if taken and not is_ours(folder / FACTS, '"unetlib page"'):
        raise DataError(f"{folder}: not a page of unetlib, so kept; give the page its own folder.")
    val = split_by_group(find_samples(REPOSITORY / "data" / "sample"))[1].iloc[EXAMPLES]
    shown = {f"examples/{Path(one).name}": Path(one) for one in [*val["image"], *val["mask"]]}
    names = [*shown]
    with tempfile.TemporaryDirectory() as place:
        facts, pair, origin = _pair(models, Path(place))
        runtime, kept = _runtime()
        facts |= dict(
            format="unetlib page",
            runtime=runtime,
            examples=[*zip(names[:4], names[4:], strict=True)],
        )
        files = {one.name: one for one in [*WEB.glob("[!r]*"), *pair]} | shown | kept
        with whole_file(folder / FACTS) as part:  # first: a page that is stopped now is ours, too
            part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        for name, source in files.items():
            content = source.read_bytes()
            if name == "index.html" and not kept:  # the one other address that it may ask
                allowed = f"connect-src 'self' {runtime['url']}".encode()
                content = content.replace(b"connect-src 'self'", allowed)
            with whole_file(folder / name) as part:
                part.write_bytes(content)
    sizes = {runtime["url"] + name: one["bytes"] for name, one in runtime["files"].items()}
    sizes |= {name: (folder / name).stat().st_size for name in (FACTS, *files)}
    where = dict(page=str(folder / "index.html"), model=str(origin), runtime=runtime["url"])
    return where | dict(files=sizes)


def _pair(models: str | Path | None, place: Path) -> tuple[dict, list[Path], Path]:
    """What a page needs to know of the int8 and the fp32 model, their files, and where from."""
    from unetlib.deploy.predict import load_predictor  # PyTorch, after the folder was looked at

    origin = models_dir() if models is None else Path(models)
    pair = [origin / name for name in PAIR]
    known = {}
    with suppress(*[ModelFileError] * (models is None)):
        known = read_manifest(origin)
    entries = [known.get(name, {}) for name in PAIR]
    intact = [one.is_file() and file_hash(one) for one in pair] == [
        e.get("sha256") for e in entries
    ]
    if not intact or entries[0]["weights"] != entries[1]["weights"]:
        if models is not None:
            problem = "no int8 and fp32 ONNX files of one training"
            raise ModelFileError(f"{origin}: {problem}; python -m unetlib export writes them.")
        from unetlib.deploy.export import export_onnx
        from unetlib.store.model_file import load_model

        origin, pair = PRETRAINED.parent, [PRETRAINED.with_name(PAIR[0]), place / PAIR[1]]
        model, about = load_model(PRETRAINED)
        export_onnx(model, pair[1], *(about[name] for name in ("size", "threshold", "colour")))
    first, _ = map(load_predictor, pair)  # or why that is not possible
    facts = dict(size=sides(first.size), threshold=first.threshold, colour=first.colour)
    named = zip(("int8", "float"), pair, strict=True)
    facts["models"] = {name: dict(file=one.name, bytes=one.stat().st_size) for name, one in named}
    return facts, pair, origin


def _runtime() -> tuple[dict, dict[str, Path]]:
    """ONNX Runtime Web, as the page needs to know it; its packed files, from npm or the cache."""
    known = json.loads((WEB / "runtime.json").read_text(encoding="utf-8"))
    kept = {name: cache_dir() / known["npm"] / f"{name}.gzip" for name in known["files"]}
    npm = shutil.which("npm")
    if not all(file.is_file() for file in kept.values()):
        if npm is None:
            return known, {}
        ask = [npm, "pack", known["npm"], "--prefer-offline", "--fetch-retries=0"]
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(ask, cwd=place, capture_output=True, text=True)
            if done.returncode:
                remedy = "write it again with a network to have it in the page's folder"
                warnings.warn(
                    f"npm pack failed: the page asks {known['url']}; {remedy}.", stacklevel=3
                )
                return known, {}
            with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
                for name, file in kept.items():
                    content = archive.extractfile(f"package/dist/{name}").read()
                    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
                    if known["files"][name]["integrity"] != f"sha384-{digest}":
                        remedy = "see where npm looks: npm config get registry"
                        raise ModelFileError(f"{name}: not that of {known['npm']}; {remedy}.")
                    with whole_file(file) as part:
                        part.write_bytes(gzip.compress(content, mtime=0))
    sizes = {name: dict(bytes=file.stat().st_size) for name, file in kept.items()}
    return known | dict(url="runtime/", files=sizes), {
        f"runtime/{one.name}": one for one in kept.values()
    }


class _Handler(SimpleHTTPRequestHandler):
    """Files, with the headers that a page needs for several threads: they shut other pages out."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # a page that was written anew is seen
        super().end_headers()

    def log_message(self, *_):
        pass


def serve_page(folder: str | Path) -> None:
    """Show a page in the web browser, offered to this computer alone, until Ctrl-C."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address} shows {folder}; Ctrl-C ends it", file=sys.stderr, flush=True)
        # A browser in the terminal waits for the page, so the server may not wait for it.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
