"""The notebooks as learners treat them: from a fresh clone, twice, in any order, interrupted.

Each notebook runs in real kernels, in the ci profile, from a clone of the last commit: changes that
are not committed are not tested here.
"""

import errno
import os
import queue
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from jupyter_client.manager import KernelManager

REPOSITORY = Path(__file__).parent.parent
NAMES = [path.stem for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))]
CHECKED = "# NBVAL_CHECK_OUTPUT"
LONGEST = 900  # seconds: a cell that takes longer hangs
PATIENCE = (0.1, 0.3, 1, 3)  # seconds until the stop button is pressed, again and again
MOST_MEMORY = 2e9  # bytes: what a laptop of 4 GB can bear

# Around a kernel: the clone is mounted read-only, and there is no network, not even to this
# computer itself; the kernel talks through sockets in the file system.
SEAL = ["sh", "-c", 'mount --bind -o ro "$0" "$0" && exec "$@"']

# What a stopped `fit` returns can be too little for the rest of its cell; this is said then.
TOO_EARLY = ("no epoch is finished yet; call fit again to go on", "run this cell again")

# A cell run by itself finds every name as the full run left it, whatever other cells did since.
REMEMBER = "get_ipython().names_after_full_run = dict(globals())"
RECALL = "globals().update(get_ipython().names_after_full_run)"


class Sitting:
    """A notebook in a kernel of its own.

    Attributes:
        cells: the sources of the code cells.
        checked: what the clone's notebook shows below the checked cells, by index.
    """

    def __init__(self, path: Path, manager: KernelManager, client):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.cells = [cell.source for cell in code]
        self.checked = {
            index: "".join(text_of(output) for output in cell.outputs)
            for index, cell in enumerate(code)
            if cell.source.startswith(CHECKED)
        }
        self.manager, self.client = manager, client
        self.complete = False  # have all cells run?

    def run(self, index: int, patience: float | None = None) -> bool:
        """Run a cell; it must not fail, and a checked one must show what the notebook shows.

        Args:
            patience: press the stop button if the cell still runs after so many seconds. It may
                then end well, as `fit` does, or as `is_stop` says.

        Returns whether it came to its end undisturbed.
        """
        text, interrupted = self.ask(self.cells[index], patience)
        if not interrupted and index in self.checked:
            assert text == self.checked[index], f"cell {index + 1} shows something else"
        return not interrupted

    def run_all(self) -> None:
        for index in range(len(self.cells)):
            self.run(index)
        self.complete = True

    def ask(self, code: str, patience: float | None = None) -> tuple[str, bool]:
        """Run any code; returns what it shows, and whether it was interrupted."""
        request, started = self.client.execute(code), time.monotonic()
        text, interrupted = "", False
        while True:
            waited = time.monotonic() - started
            if patience is not None and waited > patience and not interrupted:
                self.manager.interrupt_kernel()
                interrupted = True
            assert waited < LONGEST and self.manager.is_alive(), f"the kernel died or hangs: {code}"
            try:
                message = self.client.get_iopub_msg(timeout=0.02 if patience else 1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "error" and not (interrupted and is_stop(content)):
                pytest.fail("\n".join(["in the cell", code, *content["traceback"]]), pytrace=False)
            if content.get("execution_state") == "idle":
                return text, interrupted
            text += text_of(content)


def is_stop(error) -> bool:
    """Is this what a cell that was stopped may end with?"""
    return (
        "KeyboardInterrupt"
        in error["ename"] + error["evalue"]  # torch wraps it in errors of its own
        or any(said in error["evalue"] for said in TOO_EARLY)
        # IPython draws the figure that the cell left half-made, which may not be possible.
        or "matplotlib" in error["traceback"][-2]
    )


def text_of(output) -> str:
    """What a cell's output, or the kernel's message of it, shows as text, without its bars."""
    if output.get("name") == "stderr":
        return ""
    return output.get("text") or output.get("data", {}).get("text/plain", "")


@contextmanager
def opened(name: str, checkout: Path, home: Path, profile: str = "ci", seal=()):
    """A notebook of the clone with a fresh kernel, which writes to the folder `home`."""
    path = checkout / "notebooks" / f"{name}.ipynb"
    environment = {key: value for key, value in os.environ.items() if key != "UNETLIB_DATA"}
    environment |= dict(UNETLIB_PROFILE=profile, UNETLIB_HOME=str(home), PYTHONPATH=str(checkout))
    with TemporaryDirectory() as sockets:  # a short path: that of a socket has at most 107 letters
        manager = KernelManager()
        if sys.platform != "win32":  # sockets in the file system need no network
            manager.transport, manager.ip = "ipc", os.path.join(sockets, "kernel")
        kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        manager.kernel_spec.argv = [*seal, *kernel]
        manager.start_kernel(
            env=environment, cwd=str(path.parent), extra_arguments=["--log-level=40"]
        )
        client = manager.client()
        try:
            client.start_channels()
            client.wait_for_ready(timeout=LONGEST)
            yield Sitting(path, manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A fresh clone of the last commit in a folder with spaces."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this copy of the repository has no .git: nothing to clone")
    folder = tmp_path_factory.mktemp("a fresh clone") / "my course"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def seal(checkout):
    """What stands before a kernel's command to seal it; empty where that is not possible."""
    for user in ([], ["--map-root-user"]):
        command = ["unshare", *user, "--net", "--mount", *SEAL, str(checkout)]
        with suppress(FileNotFoundError):
            if not subprocess.run([*command, "true"], capture_output=True).returncode:
                return command
    return []


def notebooks(*quick: str) -> list:
    """All six; a test of those that are not named here is slow."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in quick else slow) for name in NAMES]


@pytest.fixture(scope="module")
def sitting(request, checkout, seal, tmp_path_factory):
    """One kernel for all that happens to a notebook: sealed, and with a work folder of its own."""
    home = tmp_path_factory.mktemp("work") / "work folder"
    with opened(request.param, checkout, home, seal=seal) as sitting:
        shown, _ = sitting.ask("import unetlib; print(unetlib.__file__)")
        assert Path(shown.strip()).parent == checkout / "unetlib"
        yield sitting


def peak_memory(sitting: Sitting) -> int:
    """Most bytes of memory that the kernel has held so far; 0 where the system does not tell."""
    status = Path(f"/proc/{sitting.manager.provisioner.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_sealed_kernel_can_neither_write_to_the_clone_nor_reach_a_network(checkout, seal):
    if not seal:
        pytest.skip("no namespaces here (unshare): notebooks run with network, in a writable clone")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import pathlib, socket, sys\n"
            "for attempt in (lambda: pathlib.Path(sys.argv[1], 'new').touch(),\n"
            "        lambda: socket.create_connection(('127.0.0.1', int(sys.argv[2])), 5)):\n"
            "    try:\n        attempt()\n    except OSError as error:\n        print(error.errno)"
        )
        port = str(server.getsockname()[1])
        command = [*seal, sys.executable, "-c", code, str(checkout), port]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(errno.EROFS), str(errno.ENETUNREACH)]


in_one_kernel = pytest.mark.parametrize(
    "sitting", notebooks("01_exploration"), indirect=True, scope="module"
)


@in_one_kernel
@pytest.mark.fault(
    "a notebook alone: fresh clone, path with spaces, read-only, no network",
    "no error; the stored outputs",
)
def test_a_notebook_runs_alone(sitting):
    sitting.run_all()
    assert peak_memory(sitting) <= MOST_MEMORY


@pytest.mark.slow  # the next test runs each cell of 01 a second time, too
@in_one_kernel
@pytest.mark.fault("all cells run twice in one kernel", "no error; the same outputs")
def test_all_cells_run_twice(sitting):
    if not sitting.complete:  # the test above has not run before
        sitting.run_all()
    sitting.run_all()


@in_one_kernel
@pytest.mark.fault("a single cell runs again after all others", "no error; the same output")
def test_each_cell_runs_again_by_itself(sitting):
    if not sitting.complete:
        sitting.run_all()
    sitting.ask(REMEMBER)
    for index in range(len(sitting.cells)):
        sitting.ask(RECALL)
        sitting.run(index)


@pytest.mark.slow
@pytest.mark.fault("a cell is interrupted, and run again", "it goes on or begins again: no error")
@pytest.mark.parametrize("name", NAMES)
def test_a_cell_can_be_interrupted_and_run_again(name, checkout, tmp_path):
    interrupted = {}
    with opened(name, checkout, tmp_path / "work folder") as sitting:
        sitting.run(0)  # an import that is cut off needs a new kernel: so is Python
        for index in range(1, len(sitting.cells)):
            for seconds in PATIENCE:
                if sitting.run(index, seconds):
                    break
                interrupted[index + 1] = seconds
            else:
                sitting.run(index)
    print(f"{name}: interrupted after up to so many seconds: {interrupted}")
    assert interrupted


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:3])
def test_the_laptop_profile_takes_at_most_2_gb(name, checkout, tmp_path):
    with opened(name, checkout, tmp_path / "work folder", profile="laptop") as sitting:
        sitting.run_all()
        peak = peak_memory(sitting)
    print(f"{name}: peak {peak / 1e9:.2f} GB")
    assert peak <= MOST_MEMORY
