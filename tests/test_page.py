"""The page that segments in the browser, in Chromium: the library's masks, refusals, downloads.

Needs Chromium, its driver, the extra `browser`, and npm for ONNX Runtime Web. Screenshots lie in
build/screenshots.
"""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_jupyterlab import CHROMIUM, DRIVER, FLAGS, By, Keys, WebDriverWait, webdriver
from test_jupyterlab import pytestmark as needs_chromium

from unetlib import (
    REPOSITORY,
    dice,
    enlarge,
    load_image,
    load_mask,
    load_predictor,
    rle_decode,
    write_page,
)
from unetlib.deploy.submission import cut_out

SCREENSHOTS = REPOSITORY / "build" / "screenshots"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is missing: apt-get install npm"),
]
LONGEST = 60  # seconds
SAMPLE = REPOSITORY / "data" / "sample"
LARGE = REPOSITORY / "data" / "fullsize" / "train" / "3fb05a2ee939_03.jpg"
PHOTOS = [
    *sorted((SAMPLE / "test").glob("*.jpg"))[::10],  # 13: every car, all round
    *sorted((SAMPLE / "train").glob("*.jpg"))[5:500:200],
]
FOUND = """
const [{ state }, { runLengths }] = [await import("./page.js"), await import("./mask.js")];
return [state.name, state.canvas.height, state.canvas.width, runLengths(state.mask)];"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder) of the page of the shipped weights, by the command; ended by Ctrl-C."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "unetlib", "page", "--serve", "--json"]
    environment = os.environ | dict(UNETLIB_HOME=str(home), BROWSER="true", PYTHONUNBUFFERED="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # A test run in the background ignores SIGINT, and its children would inherit that.
    pipes |= dict(preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    with subprocess.Popen(command, env=environment, **pipes) as server:
        try:
            line = server.stderr.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line + server.stderr.read()
            yield address[0], home / "page"
            server.send_signal(signal.SIGINT)
            written = json.loads(server.communicate(timeout=30)[0])
        finally:
            server.kill()
    assert server.returncode == 0
    assert written["runtime"] == "runtime/"
    assert written["page"] == str(home / "page" / "index.html")


def start_browser(place, flags=FLAGS):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*flags, f"--user-data-dir={place / 'browser'}"]:
        options.add_argument(flag)
    several = "profile.default_content_setting_values.automatic_downloads"  # in one go
    prefs = {"download.default_directory": str(place), several: 1}
    options.add_experimental_option("prefs", prefs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(LONGEST)
    return browser


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    browser = start_browser(downloads)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(browser, served):
    """The page, loaded once: what a test leaves in it, the next one finds."""
    return open_page(browser, served[0])


def open_page(browser, address: str):
    browser.get(address)
    wait(browser, lambda: browser.find_element(By.ID, "file").is_enabled())
    wait(browser, lambda: browser.find_element(By.TAG_NAME, "main").is_displayed())
    return browser


def wait(browser, condition):
    return WebDriverWait(browser, LONGEST, poll_frequency=0.05).until(lambda _: condition())


def settled(page) -> None:
    wait(page, lambda: page.find_element(By.ID, "stage").get_attribute("aria-busy") == "false")


def text(page, name: str) -> str:
    return page.find_element(By.ID, name).get_attribute("textContent")


def choose(page, path, field="file") -> None:
    page.find_element(By.ID, field).send_keys(str(path))
    settled(page)


def pick(page, value: str) -> None:
    page.find_element(By.CSS_SELECTOR, f"[value={value}]").click()
    settled(page)


def run(page, script: str, *arguments):
    """What the lines of an async function return that see the page's modules."""
    return page.execute_script(f"return (async function () {{{script}}})(...arguments)", *arguments)


def found(page) -> tuple[str, np.ndarray]:
    """The shown photo's name and its mask."""
    name, height, width, code = run(page, FOUND)
    return name, rle_decode(code, height, width)


def screenshot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.save_screenshot(str(SCREENSHOTS / f"page-{name}.png"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A photo lying on its side with a word on it in EXIF, one in grey, one with holes."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(PHOTOS[0]) as photo:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        photo.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
        photo.convert("L").save(folder / "grey.jpg")
        slope = np.linspace(0, 255, photo.width).astype(np.uint8)
        photo.putalpha(Image.fromarray(np.tile(slope, (photo.height, 1))))
        photo.save(folder / "with, holes.png")
    return sorted(folder.iterdir())


FILE_OF = {"int8": "unet_model_int8.onnx", "float": "unet_model_onnx.onnx"}
LEAST = {"int8": 0.995, "float": 0.9995}


@pytest.fixture(scope="module")
def predictors(served):
    return {kind: load_predictor(served[1] / name) for kind, name in FILE_OF.items()}


def agreement(page, predictors, path, kind, picture) -> tuple:
    """Dice of the page's mask of the shown photo and the library's of that picture."""
    pick(page, kind)  # which computes only if it was another one
    name, mask = found(page)
    assert name == path.name
    score = float(dice(mask[None], predictors[kind].predict_mask(picture)[None])[0])
    return path.name, kind, score, text(page, "network-time")


def test_masks_are_those_of_the_library(page, predictors, pictures):
    assert len(PHOTOS) == 16
    kinds, rows = ["int8", "float"], []
    for path in [*PHOTOS, *pictures]:
        choose(page, path)
        rows += [agreement(page, predictors, path, kind, path) for kind in kinds]
        kinds.reverse()
    print(*rows, sep="\n")
    assert [row for row in rows if row[2] < LEAST[row[1]]] == []


def test_a_large_photo_s_mask_is_that_of_its_decoded_pixels(page, predictors):
    """Of a JPEG file of this size the library decodes half of the pixels."""
    choose(page, LARGE)
    with Image.open(LARGE) as decoded:
        row = agreement(page, predictors, LARGE, "float", np.asarray(decoded))
    assert row[2] >= LEAST["float"]
    assert agreement(page, predictors, LARGE, "float", LARGE)[2] >= 0.998


ARITHMETIC = """
const [content, colour, map, threshold] = arguments;
const { readPicture, shrink, enlargedMask } = await import("./picture.js");
const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
const canvas = await readPicture(new File([bytes], "noise.png"));
const size = [canvas.height, canvas.width];
const mask = enlargedMask(map, [32, 48], size, threshold);
return [[...shrink(canvas, [48, 64], colour)], [...mask]];"""


@pytest.mark.parametrize("size", [(300, 201), (64, 48), (37, 530), (1, 1)])
def test_shrinking_and_enlarging_are_pillow_s_to_the_last_bit(page, tmp_path, size):
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    small = rng.random((32, 48), np.float32)
    content, numbers = b64encode(path.read_bytes()).decode(), small.ravel().tolist()
    for colour in (False, True):
        shrunk, mask = run(page, ARITHMETIC, content, colour, numbers, 0.37)
        expected = load_image(path, (48, 64), colour)
        expected = expected.transpose(2, 0, 1) if colour else expected
        assert shrunk == expected.ravel().tolist()
        assert mask == (enlarge(small, size) > 0.37).ravel().tolist()


# ---------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "broken.jpg").write_bytes(PHOTOS[0].read_bytes()[:9000])
    Image.new("1", (20_000, 100)).save(folder / "wide.png")
    Image.new("1", (9_000, 9_000)).save(folder / "large.png")
    return folder


@pytest.mark.parametrize("name", ["notes.txt", "broken.jpg", "wide.png", "large.png"])
def test_a_refused_file_is_named_in_a_sentence_and_the_last_photo_stays(page, wrong, name):
    choose(page, PHOTOS[0])
    choose(page, wrong / name)
    (sentence,) = text(page, "refusal").split("\n")
    assert sentence.startswith(name) and sentence.endswith(".")
    assert found(page)[0] == PHOTOS[0].name
    limits = {"wide.png": ("20000", "16384"), "large.png": ("9000", "50 million")}
    assert all(number in sentence for number in limits.get(name, ()))
    choose(page, PHOTOS[0])
    assert text(page, "refusal") == ""


def test_a_mask_of_another_size_or_of_greys_is_refused(page, tmp_path):
    choose(page, PHOTOS[0])
    mask = Image.new("L", (480, 320))
    mask.putpixel((0, 0), 1)
    mask.save(tmp_path / "fine_mask.png")
    mask.putpixel((0, 1), 255)
    mask.save(tmp_path / "greys_mask.png")
    Image.new("1", (48, 32)).save(tmp_path / "small_mask.png")
    for name, refused in [("greys", True), ("small", True), ("fine", False)]:
        choose(page, tmp_path / f"{name}_mask.png", "truth")
        assert (f"{name}_mask.png" in text(page, "refusal")) == refused
        assert bool(re.fullmatch(r"0\.\d{4}", text(page, "dice"))) != refused


# -------------------------------------------------------------------------------- what it can do


DROP = """
const [files, addresses] = [new DataTransfer(), arguments];
for (const address of addresses) {
    const content = await (await fetch(address)).blob();
    files.items.add(new File([content], address.split("/").pop()));
}
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));"""


def test_a_photo_dropped_with_its_true_mask_gets_its_dice(page, served):
    photo = sorted((served[1] / "examples").glob("*.jpg"))[1]
    truth = load_mask(photo.with_name(f"{photo.stem}_mask.gif"))
    run(page, DROP, f"examples/{photo.name}", f"examples/{photo.stem}_mask.gif")
    wait(page, lambda: re.match(rf"{photo.name}, .* object", text(page, "status")))
    name, mask = found(page)
    assert name == photo.name
    score = float(dice(mask[None], truth[None])[0])
    assert text(page, "dice") == f"{score:.4f}"
    assert score > 0.97
    run(page, DROP, f"examples/{photo.name}", "icon.svg")
    wait(page, lambda: "one photo" in text(page, "refusal"))


def test_what_is_downloaded_is_what_is_shown(page, downloads, pictures):
    path = next(path for path in pictures if path.suffix == ".png")
    choose(page, path)
    mask = found(page)[1]
    for name in ("mask", "cutout", "code"):
        page.find_element(By.ID, f"save-{name}").click()
    ends = ("_mask.png", "_cutout.png", "_mask.csv")
    files = [downloads / f"{path.stem}{end}" for end in ends]
    wait(page, lambda: all(file.exists() for file in files))
    assert (load_mask(files[0]) == mask).all()
    with Image.open(files[1]) as cut, Image.open(path) as photo:
        on_white = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
        expected = np.asarray(cut_out(on_white, mask)).astype(int)
        apart = np.abs(np.asarray(cut) - expected)
    assert apart[:, :, 3].max() <= 1
    assert apart[expected[:, :, 3] == 255].max() <= 1
    with open(files[2], newline="", encoding="utf-8") as file:
        header, (name, code) = csv.reader(file)
    assert (header, name) == (["img", "rle_mask"], path.name)
    assert (rle_decode(code, *mask.shape) == mask).all()


def test_the_keyboard_reaches_everything_and_a_moved_threshold_shows_at_once(page):
    choose(page, PHOTOS[0])
    page.execute_script("document.getElementById('file').focus()")
    reached, outlines = [], []
    for _ in range(12):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        reached.append(focused.get_attribute("id") or focused.get_attribute("value"))
        outlined = "return getComputedStyle(arguments[0].closest('label.button') ?? arguments[0])"
        outlines.append(page.execute_script(f"{outlined}.outlineStyle", focused))
        if reached[-1] == "threshold":
            before = found(page)[1].sum()
            focused.send_keys(Keys.ARROW_LEFT * 40)
            assert text(page, "chosen") == "0.10"
            more = found(page)[1].sum()
            focused.send_keys(Keys.ARROW_RIGHT * 40)
            assert more > before == found(page)[1].sum()
    assert {"truth", "threshold", "save-mask", "save-cutout", "save-code"} <= {*reached}
    assert {"none"}.isdisjoint(outlines)
    example = page.find_element(By.CSS_SELECTOR, "#examples button")
    example.send_keys(Keys.ENTER)
    shown = example.find_element(By.TAG_NAME, "img").get_attribute("src").rpartition("/")[2]
    wait(page, lambda: re.match(rf"{shown}, .* object", text(page, "status")))
    assert found(page)[0] == shown
    screenshot(page, "desktop")


def test_a_phone_needs_no_scrolling_aside_and_dark_is_dark(page):
    choose(page, LARGE)
    metrics = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    screenshot(page, "phone")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    ground = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    light = sum(page.execute_script(ground))
    dark = dict(features=[dict(name="prefers-color-scheme", value="dark")])
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    pick(page, "cutout")
    assert sum(page.execute_script(ground)) < 120 < 600 < light
    screenshot(page, "dark")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[]))
    pick(page, "mask")


def test_nothing_is_asked_of_another_server_and_nothing_is_complained_of(page, served):
    logged = (json.loads(entry["message"])["message"] for entry in page.get_log("performance"))
    sent = [one["params"] for one in logged if one["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in sent]
    assert any(address.endswith("unet_model_int8.onnx") for address in asked)
    own = (served[0], "blob:" + served[0], "data:", "chrome:")
    assert [address for address in asked if not address.startswith(own)] == []
    assert [
        one["message"] for one in page.get_log("browser") if "file://" not in one["message"]
    ] == []


# ------------------------------------------------------------- where ONNX Runtime Web comes from


@pytest.fixture
def without_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


class Elsewhere(SimpleHTTPRequestHandler):
    """A server that other pages may ask, as a content delivery network is."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler, folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_without_npm_the_page_loads_and_checks_the_pinned_version_from_elsewhere(
    served, browser, exported, tmp_path, without_npm
):
    """A second server here plays the public one, with the very files."""
    written = write_page(folder := tmp_path / "page", exported[0])
    address = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"
    assert written["runtime"] == address
    assert not (folder / "runtime").exists()
    facts = json.loads((folder / "page.json").read_bytes())
    assert (facts["size"], facts["runtime"]["url"]) == ([32, 32], address)
    assert f"connect-src 'self' {address};" in (folder / "index.html").read_text(encoding="utf-8")
    for file in (served[1] / "runtime").glob("*.gzip"):
        (tmp_path / "cdn").mkdir(exist_ok=True)
        (tmp_path / "cdn" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    with serving(Elsewhere, tmp_path / "cdn") as cdn, serving(Elsewhere, folder) as own:
        for name in ("page.json", "index.html"):
            file = folder / name
            file.write_text(file.read_text(encoding="utf-8").replace(address, cdn))
        choose(open_page(browser, own), PHOTOS[0])
        mask = load_predictor(folder / "unet_model_int8.onnx").predict_mask(PHOTOS[0])
        assert dice(found(browser)[1][None], mask[None])[0] > 0.995
        assert cdn.split("/")[2] in text(browser, "runtime")
        assert "one thread" in text(browser, "network-time")  # no headers, no threads
        wasm = tmp_path / "cdn" / "ort-wasm-simd-threaded.wasm"
        wasm.write_bytes(wasm.read_bytes() + b"x")
        choose(open_page(browser, own), PHOTOS[0])
        assert "onnxruntime-web@1.30.0" in text(browser, "refusal")
        assert not browser.find_element(By.ID, "save-mask").is_enabled()


@pytest.mark.slow
def test_the_graphics_card_gives_the_same_probabilities(exported, tmp_path):
    """Played by a program: ten seconds for what takes a real one some milliseconds."""
    played = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    browser = start_browser(tmp_path, [*(one for one in FLAGS if one != "--disable-gpu"), *played])
    folder = Path(write_page(tmp_path / "page", exported[0])["page"]).parent
    try:
        with serving(Elsewhere, folder) as own:
            choose(open_page(browser, own), PHOTOS[0])
            script = "return [...(await import('./page.js')).state.probabilities]"
            pick(browser, "float")
            expected = run(browser, script)
            pick(browser, "gpu")
            assert "graphics card" in text(browser, "network-time")
            np.testing.assert_allclose(run(browser, script), expected, atol=1e-4)
    finally:
        browser.quit()


def test_opened_as_a_file_it_says_to_serve_it(browser, served):
    browser.get((served[1] / "index.html").as_uri())
    note = browser.find_element(By.ID, "unstarted")
    wait(browser, note.is_displayed)
    assert "python -m unetlib page --serve" in note.text
    assert not browser.find_element(By.TAG_NAME, "main").is_displayed()
