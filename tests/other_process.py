"""Real processes that need not import PyTorch again: forked from a server that has."""

import multiprocessing
import os
import signal

FORKS = multiprocessing.get_context("forkserver")
# PyTorch imports the last one with the first optimizer, which takes a second.
FORKS.set_forkserver_preload(["unetlib.store.fit", "unetlib.fetch.samples", "torch._dynamo"])


def start(work, *arguments):
    """Begin to call a function in a process of its own, which imports the function's module.

    Returns:
        The process, and the connection that gives what the function returns or raises.
    """
    receiver, sender = FORKS.Pipe(duplex=False)
    given = sender, dict(os.environ), work, arguments
    process = FORKS.Process(target=_call, args=given)
    process.start()
    sender.close()
    return process, receiver


def in_another_process(work, *arguments):
    """What a function returns or raises in a process of its own."""
    process, answer = start(work, *arguments)
    try:
        result = answer.recv()
    finally:
        process.join()
    if isinstance(result, Exception):
        raise result
    return result


def with_megabytes_left(count: int, work, *arguments):
    """Call a function while Linux grants this process only so much more memory."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + count * 2**20, -1))
    return work(*arguments)


def _call(sender, environment, work, arguments) -> None:
    """As in a terminal: one thread computes, and SIGINT raises KeyboardInterrupt."""
    import torch

    os.environ.clear()  # the server's may hold a profile that the test has unset
    os.environ.update(environment)
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    try:
        result = work(*arguments)
    except Exception as error:
        result = error
    sender.send(result)
