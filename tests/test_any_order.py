"""The notebooks as learners treat them: from a fresh clone, twice, in any order, interrupted.

Each notebook runs in real kernels, in the ci profile, from a clone of the last commit: changes that
are not committed are not tested here.
"""

import os
import queue
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from jupyter_client.manager import KernelManager

REPOSITORY = Path(__file__).parent.parent
NAMES = [path.stem for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))]
CHECKED = "# NBVAL_CHECK_OUTPUT"
LONGEST = 900  # seconds: a cell that takes longer hangs

# The clone as a read-only mount, and a network in which nothing can be reached, not even this
# computer: the kernel talks through sockets in the file system.
SEALED = ["sh", "-c", 'mount --bind -o ro "$0" "$0" && exec "$@"']

REMEMBER = "get_ipython().names_after_full_run = dict(globals())"
RECALL = "globals().update(get_ipython().names_after_full_run)"
PEAK_MEMORY = """
import re, pathlib, resource
_kilobytes = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(int(_kilobytes) / 1e6)
"""


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

    def run(self, index: int, patience: float | None = None) -> bool:
        """Run a cell; it must not fail, and a checked one must show what the notebook shows.

        Args:
            patience: press the stop button if the cell still runs after so many seconds. It may
                then end with KeyboardInterrupt, or well, as `fit` does.

        Returns whether it came to its end undisturbed.
        """
        text, interrupted = self.ask(self.cells[index], patience)
        if not interrupted and index in self.checked:
            assert text == self.checked[index], f"cell {index + 1} shows something else"
        return not interrupted

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
            if message["msg_type"] == "error" and not (
                interrupted and content["ename"] == "KeyboardInterrupt"
            ):
                pytest.fail(f"{content['ename']}: {content['evalue']} in\n{code}")
            if content.get("execution_state") == "idle":
                return text, interrupted
            text += text_of(content)


def text_of(output) -> str:
    """What a cell's output, or the kernel's message of it, shows as text, progress bars left out."""
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
            client.wait_for_ready(timeout=120)
            yield Sitting(path, manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
