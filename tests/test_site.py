"""The course as a site: built as `make site` does, every page opened in Chromium, at phone width.

Needs the extras `site` and `browser`, npm, Chromium and its driver. Screenshots lie in
build/screenshots.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from test_jupyterlab import CHROMIUM, DRIVER, FLAGS, WebDriverWait, screenshot, webdriver
from test_jupyterlab import pytestmark as needs_chromium

import unetlib

REPOSITORY = Path(__file__).parent.parent
TOOLS = REPOSITORY / "tools" / "site"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
PHONE, DESKTOP = (390, 844), (1440, 1000)  # width and height in pixels

spec = importlib.util.spec_from_file_location("mathjax_from_npm", TOOLS / "mathjax.py")
mathjax = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mathjax)

# What one page holds; formulas are set before.
FACTS = """
    const done = arguments[0], main = document.querySelector("main") ?? document.body;
    const facts = () => done({
        too_wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        pictures: [...main.querySelectorAll("img")].map(one => one.alt),
        figures: [...main.querySelectorAll(".cell_output img")].map(one => one.alt),
        broken: [...document.images].filter(one => one.complete && !one.naturalWidth).length,
        links: [...document.querySelectorAll("a[href]")].map(one => one.href),
        ids: [...document.querySelectorAll("[id]")].map(one => one.id),
        formulas: [document.querySelectorAll("span.math, div.math").length,
                   document.querySelectorAll("mjx-container").length],
        folded: main.querySelectorAll("details:not([open])").length,
        unfolded: main.querySelectorAll("details[open]").length,
        text: [...main.querySelectorAll("p, li, td")].filter(one => !one.closest("pre, dt"))
            .map(one => [...one.childNodes].filter(node => node.nodeType == Node.TEXT_NODE)
                .map(node => node.data).join("")).join("\\n"),
    });
    const seen = Promise.all([...document.images].map(one => one.decode().catch(() => one)));
    seen.then(() => window.MathJax?.startup ? MathJax.startup.promise.then(facts) : facts());
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for needed in ("sphinx", "myst_nb", "sphinx_book_theme"):
        pytest.importorskip(needed, reason='Sphinx is missing: .venv/bin/pip install -e ".[site]"')
    try:
        mathjax.write_mathjax(tmp_path_factory.mktemp("mathjax"), REPOSITORY / "build" / "npm")
    except SystemExit as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("built") / "site"
    ended = subprocess.run(
        [sys.executable, TOOLS / "build.py", "--output", folder], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("browser")
    elsewhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for flag in [*FLAGS, elsewhere, "--hide-scrollbars", f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def resize(browser, width: int, height: int) -> None:
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait(browser, script: str):
    """What a script returns, as soon as that is true."""
    return WebDriverWait(browser, 30, poll_frequency=0.1).until(
        lambda _: browser.execute_script(script)
    )


@pytest.fixture(scope="module")
def pages(site, address, browser):
    """What each page holds, by its path below the site, and what it asked for and complained of."""
    resize(browser, *PHONE)
    found = {}
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if name.startswith("_static/"):  # pieces of the theme
            continue
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(address + name)
        found[name] = browser.execute_async_script(FACTS)
        log = browser.get_log("browser")
        found[name]["complaints"] = [line for line in log if line["level"] != "INFO"]
        events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
        found[name]["requests"] = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
    return found


pytestmark = needs_chromium


def test_the_site_has_every_part(pages):
    expected = {"index.html", "search.html", "notebooks/glossary.html", "api/lesson.html"}
    expected |= {f"notebooks/{path.stem}.html" for path in NOTEBOOKS}
    expected |= {f"guides/{name}.html" for name in ("two-commands", "real-data", "for-teachers")}
    assert expected <= set(pages)


def test_no_page_complains_or_asks_for_anything_beyond_the_folder(pages, address):
    for name, page in pages.items():
        assert page["complaints"] == [], name
        assert page["requests"][0] == address + name
        assert [
            url for url in page["requests"] if not url.startswith((address, "data:", "blob:"))
        ] == [], name
        assert page["broken"] == 0, name


def test_no_page_scrolls_sideways_on_a_phone(pages):
    assert {name: page["too_wide"] for name, page in pages.items() if page["too_wide"] > 0} == {}


def test_every_link_leads_to_a_page_and_a_place_on_it(pages, site, address):
    for name, page in pages.items():
        for link in page["links"]:
            target, fragment = urldefrag(link)
            if not target.startswith(address):
                assert target.startswith("https://"), (name, link)
                continue
            target = unquote(target.removeprefix(address)) or "index.html"
            assert (site / target).is_file(), (name, link)
            if fragment:
                assert unquote(fragment) in pages[target]["ids"], (name, link)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_figures_with_their_texts_and_folds_what_it_hides(pages, path):
    notebook = nbformat.read(path, as_version=4)
    page = pages[f"notebooks/{path.stem}.html"]
    alts = [
        output.metadata["image/png"]["alt"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert page["figures"] == [" ".join(alt.split()) for alt in alts] and all(alts)
    hidden = sum("jupyter" in cell.metadata for cell in notebook.cells)
    solutions = sum(cell.source.count("<summary>Solution") for cell in notebook.cells)
    assert (page["folded"], page["unfolded"]) == (hidden + solutions, 0)
    assert "wrong: answer" not in page["text"]


def test_every_picture_says_what_it_shows_and_every_formula_is_set(pages):
    for name, page in pages.items():
        assert all(alt.strip() for alt in page["pictures"]), name
        written, typeset = page["formulas"]
        assert written == typeset, name
    assert pages["notebooks/05_export.html"]["formulas"][1] > 0


def test_no_markdown_is_left_in_the_text(pages):
    for name, page in pages.items():
        if not name.startswith(("api/", "guides/changes")):  # there, ** is Python's
            for mark in ("**", "](", "```", "$$"):
                assert mark not in page["text"], (name, mark)


def test_every_public_name_is_described(pages):
    reference = [page for name, page in pages.items() if name.startswith("api/")]
    described = {one for page in reference for one in page["ids"]}
    assert {f"unetlib.{home}.{name}" for name, home in unetlib._MODULES.items()} <= described


def test_code_in_a_guide_leads_to_the_reference(pages, address):
    links = pages["guides/your-own-pictures-your-own-ideas.html"]["links"]
    assert f"{address}api/store.html#unetlib.store.compare.best_model" in links
    assert f"{address}guides/model-card.html" in pages["guides/results.html"]["links"]


def test_search_finds_a_word(browser, address):
    browser.get(address + "search.html?q=transposed")
    results = "[...document.querySelectorAll('#search-results a')].map(one => one.href)"
    found = wait(browser, f"return {results}.length > 2 && {results}")
    found = {link.removeprefix(address).partition("?")[0].partition("#")[0] for link in found}
    assert {"notebooks/03_model.html", "notebooks/glossary.html"} <= found


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_the_menus_open_on_a_phone(browser, address, which):
    resize(browser, *PHONE)
    browser.get(address + "notebooks/02_dataset.html")
    buttons = browser.find_elements("css selector", f".{which}-toggle")
    (button,) = [one for one in buttons if one.is_displayed()]
    button.click()
    opened = f"return document.querySelector('#pst-{which}-sidebar-modal').open"
    wait(browser, opened)


@pytest.mark.parametrize("name", ["index", "notebooks/03_model", "api/store"])
def test_a_page_is_light_or_dark_as_the_reader_s_system_is(browser, address, name):
    browser.get(f"{address}{name}.html")
    for kind, size in [("light", DESKTOP), ("dark", DESKTOP), ("phone", PHONE)]:
        theme = "dark" if kind == "dark" else "light"
        wanted = [dict(name="prefers-color-scheme", value=theme)]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=wanted))
        resize(browser, *size)
        wait(browser, f"return document.documentElement.dataset.theme == {theme!r}")
        screenshot(browser, f"site-{Path(name).name}-{kind}")


@pytest.mark.fault("the site's MathJax without npm, or not as npm gives it", "one sentence")
def test_without_npm_and_with_a_changed_file_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm.*nodejs\.org"):
        mathjax.write_mathjax(tmp_path / "written", tmp_path / "cache")
    changed = tmp_path / f"mathjax-{mathjax.VERSION}.tgz"
    changed.write_bytes(b"something else")
    with pytest.raises(SystemExit, match=changed.name):
        mathjax.write_mathjax(tmp_path / "written", tmp_path)
    assert not changed.exists() and not (tmp_path / "written").exists()


def test_a_folder_that_holds_something_else_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, TOOLS / "build.py", "--output", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert str(tmp_path) in ended.stderr and (tmp_path / "mine.txt").read_text() == "mine"
