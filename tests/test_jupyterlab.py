"""JupyterLab as a learner sees it: opened in Chromium, Run All, figures, a slider that is moved.

Needs Chromium, its driver and the extra `browser`; `.ci/run` installs them. Screenshots lie in
build/screenshots.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import copies
import nbformat
import pytest

webdriver = pytest.importorskip(
    "selenium.webdriver", reason='selenium is missing: .venv/bin/pip install -e ".[browser]"'
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium or chromedriver is missing: apt-get install chromium chromium-driver",
)
LONGEST = 600  # seconds
TOKEN = "a-token-for-this-test"
FLAGS = [
    "--headless",
    "--no-sandbox",  # Chromium's own does not run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1300,1400",
]

PROMPTS = """return [...document.querySelectorAll(
    ".jp-CodeCell .jp-InputArea-prompt")].map(prompt => prompt.textContent.trim())"""
ERRORS = """return [...document.querySelectorAll(
    '[data-mime-type="application/vnd.jupyter.error"]')].map(output => output.textContent)"""
FIGURES = """return [...document.querySelectorAll(".jp-CodeCell")].filter(cell => [
    ...cell.querySelectorAll(".jp-OutputArea img")].some(img => img.naturalWidth > 50)).length"""
FIRST = ".jp-OutputArea img"
# All pictures below a cell, as pixels; nothing while one of them is still being loaded.
PICTURE = """
    const found = arguments[0].closest(".jp-CodeCell").querySelectorAll(".jp-OutputArea img");
    if (![...found].every(img => img.complete && img.naturalWidth)) return "";
    return [...found].map(img => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        canvas.getContext("2d").drawImage(img, 0, 0);
        return canvas.toDataURL();
    }).join(" ")"""
SLIDER = "//div[contains(@class, 'widget-slider')][.//label[text()='threshold']]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with fresh settings that serves the copies of `make lab`."""
    place = tmp_path_factory.mktemp("lab")
    folder = place / "my-notebooks"
    copies.renew(sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")), folder)
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    whole = {"windowingMode": "none"}  # cells out of sight stay on the page, so that they are seen
    for plugin, changed in (
        ("apputils-extension/notification", quiet),
        ("notebook-extension/tracker", whole),
    ):
        path = place / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(changed))

    environment = {key: value for key, value in os.environ.items() if key != "UNETLIB_DATA"}
    environment |= dict(
        JUPYTER_CONFIG_DIR=str(place / "config"),
        JUPYTER_DATA_DIR=str(place / "data"),
        JUPYTER_RUNTIME_DIR=str(place / "runtime"),
        JUPYTERLAB_SETTINGS_DIR=str(place / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(place / "workspaces"),
        JUPYTER_PREFER_ENV_PATH="1",
        UNETLIB_PROFILE="ci",
        UNETLIB_HOME=str(place / "home"),
        PYTHONPATH=str(REPOSITORY),
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/lab"
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.{name}={value}" for name, value in dict(
        ip="127.0.0.1", port=port, port_retries=0, token=TOKEN, root_dir=folder
    ).items()]  # fmt: skip
    with open(place / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        started = time.monotonic()
        while True:
            assert server.poll() is None and time.monotonic() - started < LONGEST, (
                "JupyterLab does not start: " + (place / "lab.log").read_text()[-2000:]
            )
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except ConnectionError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # its kernels end with it
        server.wait(timeout=60)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser, condition):
    return WebDriverWait(browser, LONGEST, poll_frequency=0.2).until(lambda _: condition())


def screenshot(browser, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def run_all(browser, lab, name: str, cells: list) -> None:
    """Open a notebook and choose Run All from the menu; returns when all code cells have run."""
    # Of a hidden cell, the page shows no number.
    numbered = [
        f"[{number}]:"
        for number, cell in enumerate(cells, start=1)
        if not cell.metadata.get("jupyter", {}).get("source_hidden")
    ]
    # A workspace of its own: the default one opens the notebooks of before as well.
    browser.get(f"{lab}/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
    wait(browser, lambda: set(browser.execute_script(PROMPTS)) == {"[ ]:"})
    ready = "//*[contains(text(), '(ipykernel) | Idle')]"  # in the status bar
    wait(browser, lambda: browser.find_elements(By.XPATH, ready))
    menu = "//div[contains(@class, 'lm-MenuBar-itemLabel')][text()='Run']"
    wait(browser, lambda: browser.find_elements(By.XPATH, menu))[0].click()
    entry = "li[data-command='runmenu:run-all']"
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, entry))[0].click()

    def ended():
        return browser.execute_script(ERRORS) or browser.execute_script(PROMPTS) == numbered

    wait(browser, ended)
    screenshot(browser, f"{name}-end")
    assert browser.execute_script(ERRORS) == []


def move_slider(browser, name: str) -> None:
    slider = wait(browser, lambda: browser.find_elements(By.XPATH, SLIDER))[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    before = wait(browser, lambda: browser.execute_script(PICTURE, slider))
    screenshot(browser, f"{name}-slider-before")
    handle = slider.find_element(By.CSS_SELECTOR, ".noUi-handle")
    handle.send_keys(Keys.ARROW_LEFT * 6)
    wait(browser, lambda: browser.execute_script(PICTURE, slider) not in ("", before))
    screenshot(browser, f"{name}-slider-after")
    assert browser.execute_script(ERRORS) == []


@pytest.mark.parametrize(
    ("name", "slider"),
    [
        ("01_exploration", False),
        pytest.param("06_inference_comparison", True, marks=pytest.mark.slow),
    ],
)
def test_run_all_shows_every_figure_and_no_error_and_a_moved_slider_changes_the_picture(
    browser, lab, name, slider
):
    stored = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    with_figure = [
        cell
        for cell in cells
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    run_all(browser, lab, name, cells)
    wait(browser, lambda: browser.execute_script(FIGURES) >= len(with_figure))
    browser.execute_script(f"document.querySelector({FIRST!r}).scrollIntoView()")
    screenshot(browser, f"{name}-figure")
    if slider:
        move_slider(browser, name)
