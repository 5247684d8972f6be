"""Files that are whole or absent, and locks that end with their process."""

import os
import random
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
from other_process import FORKS, in_another_process, start
from packaging.version import Version

from unetlib.support.files import locked, whole_file

# ------------------------------------------------------------------------------------ whole files


def test_a_whole_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new folder" / "file.json"
    with whole_file(path) as part:
        part.write_text("all of it")
        assert not path.exists()
        assert part.suffix == ".json"
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------ locks


def is_free(path) -> bool:
    with locked(path) as held:
        return held


def hold(path, taken, done) -> None:
    with locked(path):
        taken.set()
        done.wait(60)


def test_a_lock_is_held_by_one_program_and_free_for_the_next(tmp_path):
    with locked(tmp_path / "lock") as held:
        assert held
        assert not in_another_process(is_free, tmp_path / "lock")
    assert in_another_process(is_free, tmp_path / "lock")


def test_who_waits_is_called_first_and_gets_the_lock(tmp_path):
    taken, done = FORKS.Event(), FORKS.Event()
    process, _ = start(hold, tmp_path / "lock", taken, done)
    assert taken.wait(60)
    assert not is_free(tmp_path / "lock")
    waited_for = []

    def wait(path):
        waited_for.append(path)
        done.set()

    with locked(tmp_path / "lock", on_wait=wait) as held:
        assert held and waited_for == [tmp_path / "lock"]
    process.join()


def test_a_lock_held_further_out_is_not_held_again(tmp_path):
    """As when runs are deleted from inside of a training."""
    with locked(tmp_path / "lock"):
        assert not is_free(tmp_path / "lock")
        assert not in_another_process(is_free, tmp_path / "lock")


def take_and_be_killed(path) -> None:
    with locked(path) as held:
        assert held
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault("a lock left by a killed program", "does not block anybody")
@pytest.mark.skipif(os.name != "posix", reason="kills as Unix does")
def test_a_killed_program_leaves_no_lock(tmp_path):
    with pytest.raises(EOFError):
        in_another_process(take_and_be_killed, tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def stop_at_random_moments(folder: Path, attempts: int) -> tuple[int, int]:
    """How many stops hit the taking or giving back of a lock, and how many locks stayed behind."""
    stops = blocked = 0
    pressed_while_locking = False
    random.seed(0)

    def press(*signal_and_frame):
        if pressed_while_locking:
            raise KeyboardInterrupt

    def wait_for_oneself(_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, press)
    for _ in range(attempts):
        path = folder / str(blocked)
        try:
            pressed_while_locking = True
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + 5e-4 * random.random())
            with locked(path):
                sum(range(3000))
            pressed_while_locking = False
        except KeyboardInterrupt as stop:
            pressed_while_locking, kept = False, stop  # noqa: F841  as IPython keeps it
            stops += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            with locked(path, on_wait=wait_for_oneself):
                pass
        except (TimeoutError, RuntimeError):  # filelock's, where it was stopped while it was built
            blocked += 1
    return stops, blocked


@pytest.mark.skipif(os.name != "posix", reason="takes a timer that only Unix has")
@pytest.mark.fault(
    "the stop button while a run's lock is taken or given back, a thousand times",
    "the same kernel can train the run again",
)
def test_a_stop_leaves_no_lock_behind(tmp_path):
    stops, blocked = in_another_process(stop_at_random_moments, tmp_path, 2000)
    assert stops > 400
    # Python can be stopped on the very way into a finally: about once in some thousands of these.
    # filelock itself can be stopped there before 4.2.4, which Colab has.
    safe = Version(version("filelock")) >= Version("4.2.4")
    assert blocked < stops / (200 if safe else 10)
