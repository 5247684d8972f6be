"""Ideas typed into a real kernel after notebook 04's cells: edited, run again, restarted, killed.

`pytest -s tests/test_cells.py` prints a table of what `fit` did each time.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "04_training.ipynb"
STATE = "quick = Recipe("  # the cell of notebook 04 after which everything is there
SETUP = """
import hashlib, os, sys
from functools import partial
from torch import nn
from unetlib import fit, find_samples, split_by_group
DEAD = os.environ.get("DIES") == "1"
table = few, val
def go(recipe, **settings):
    epochs = []
    def on_epoch(run):
        if DEAD:
            os._exit(1)
        epochs.append(run)
    run = fit(recipe, *table, **({"on_epoch": on_epoch} | settings))
    weights = hashlib.sha256(b"".join(
        value.cpu().numpy().tobytes() for value in run.model("last").state_dict().values()))
    print("ANSWER", run.folder.name, len(epochs), weights.hexdigest()[:12], run.finished)
"""

# An idea is a cell, and the edits that must make another run of it: a character, a constant, a
# helper. All of them survive a changed comment.
LOSS = """
GAMMA = 2.0
def certainty(logits, masks):
    p = torch.sigmoid(logits)  # of the car
    return torch.where(masks > 0.5, p, 1 - p)
def focal(logits, masks):
    right = certainty(logits, masks)
    return -((1 - right) ** GAMMA * right.clamp(min=1e-6).log()).mean()
go(replace(quick, loss=focal))
"""
AUGMENT = """
STRENGTH = 0.1
def noise(images):
    return STRENGTH * torch.randn_like(images)  # for each pixel
def noisy(images, masks):
    return (images + noise(images)).clamp(0, 1), masks
go(replace(quick, augment=noisy))
"""
V2 = """
from torchvision.transforms import v2
DEGREES = 10
def turned():
    return v2.RandomRotation(DEGREES)  # both ways
go(replace(quick, augment=v2.Compose([turned(), v2.RandomHorizontalFlip(0.5)])))
"""
NETWORK = """
WIDTH = 8
def block(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())  # no norm
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(block(1, WIDTH), nn.Dropout(0.2), nn.Conv2d(WIDTH, 1, 1))
    def forward(self, x):
        return self.layers(x) * 2
go(Recipe(network=Mine, size=quick.size, epochs=quick.epochs, lr=0.01))
"""
OPTIMIZER = """
MOST = 1.0
def clip(parameters):
    nn.utils.clip_grad_norm_(parameters, MOST)  # of all together
def clipped(parameters, lr):
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
    optimizer.register_step_pre_hook(lambda *_: clip(parameters))
    return optimizer
go(replace(quick, optimizer=clipped, lr=0.01))
"""
SCHEDULE = """
WARM_UP = 3
def factor(step):
    return min(1, (step + 1) / WARM_UP)  # of lr
def warm(optimizer, total_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step) * 0.9)
go(replace(quick, schedule=warm))
"""
PATIENCE = """
WAIT = 1
def rate():
    return 1e-6  # far too low
go(replace(quick, patience=WAIT, epochs=6, lr=rate(), seed=2))
"""
START = """
EPOCHS = 1
def start():
    return fit(replace(quick, epochs=EPOCHS, seed=7), *table)  # once
go(replace(quick, start_from=start(), lr=2e-4))
"""
COLOUR = """
SIZE = (96, 64)
def widths():
    return 4, 8  # narrow
go(replace(quick, colour=True, size=SIZE, widths=widths(), batch_size=8))
"""
METRIC = """
FIRST, LAST = 0, 1
def rim(mask):
    return mask - nn.functional.avg_pool2d(mask, 3, 1, 1) * LAST  # where it changes
def rim_error(probabilities, masks):
    return (rim(probabilities) - rim(masks)).abs().sum((1, 2, 3)) + FIRST
go(quick, metrics={"rim_error": rim_error}, best_by=("rim_error", "min"))
"""
STOP = """
ENOUGH = 0.99
def enough(dice):
    return dice > ENOUGH  # never, here
go(replace(quick, seed=11), metrics={"half": lambda p, m: p.mean((1, 2, 3)) / 2})
"""
PICTURES = """
OBJECT = 255
def group(path):
    return path.stem[:12]  # the car
rows = find_samples(images=data_dir() / "train", masks=data_dir() / "train_masks/*.gif",
                    group=group)
table = split_by_group(rows)
go(replace(quick, widths=(4, 8), size=32, batch_size=64))
"""
IDEAS = {
    "loss": (LOSS, ("> 0.5", "> 0.4"), ("GAMMA = 2", "GAMMA = 3"), ("1 - p)", "1.0 - 0.9 * p)")),
    "augment": (AUGMENT, ("(0, 1)", "(0, 2)"), ("= 0.1", "= 0.2"), ("randn_", "rand_")),
    "v2 augment": (V2, ("Flip(0.5", "Flip(0.6"), ("= 10", "= 11"), ("(DEGREES", "(2 * DEGREES")),
    "network": (NETWORK, ("* 2", "* 3"), ("= 8", "= 9"), ("nn.ReLU", "nn.SiLU")),
    "optimizer": (OPTIMIZER, ("=0.9", "=0.8"), ("MOST = 1", "MOST = 2"), ("MOST)", "MOST / 9)")),
    "schedule": (SCHEDULE, ("* 0.9", "* 0.8"), ("= 3", "= 4"), ("min(1,", "min(0.5,")),
    "patience": (PATIENCE, ("seed=2", "seed=3"), ("= 1", "= 2"), ("1e-6", "2e-6")),
    "start_from": (START, ("2e-4", "3e-4"), ("= 1", "= 2"), ("seed=7", "seed=8")),
    "colour, size": (COLOUR, ("size=8", "size=9"), ("96, 64", "64, 96"), ("4, 8", "4, 9")),
    "best_by": (METRIC, ("masks))", "1 * masks))"), ("= 0, 1", "= 1, 1"), ("3, 1, 1", "5, 1, 2")),
    "on_epoch": (STOP, ("seed=11", "seed=12"), None, None),
    "own pictures": (PICTURES, ("size=32", "size=36"), None, ("[:12]", "[:2]")),
}


class Kernel:
    """A kernel in which notebook 04 has been run up to ``STATE``, in the ci profile."""

    def __init__(self, manager: KernelManager, client):
        self.manager, self.client = manager, client

    def ask(self, code: str) -> str:
        """What a cell prints; an error fails the test."""
        said = []

        def listen(message: dict) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            if message["msg_type"] == "error":
                pytest.fail("\n".join(content["traceback"]) + code)

        self.client.execute_interactive(code, timeout=300, output_hook=listen)
        return "".join(said)

    def answer(self, idea: str) -> tuple[str, int, str, str]:
        lines = [one for one in self.ask(idea).splitlines() if one.startswith("ANSWER")]
        _, name, epochs, weights, finished = lines[-1].split()
        return name, int(epochs), weights, finished

    def dies(self, idea: str) -> bool:
        """Whether a cell ends the kernel within two minutes."""
        self.client.execute(idea)
        for _ in range(1200):
            if not self.manager.is_alive():
                return True
            time.sleep(0.1)
        return False


@contextmanager
def kernel(home: Path, **environment):
    code = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    last = next(index for index, source in enumerate(code) if STATE in source)
    environment |= dict(UNETLIB_HOME=str(home), UNETLIB_PROFILE="ci", OMP_NUM_THREADS="1")
    environment = {**os.environ, **environment}
    environment.pop("UNETLIB_DATA", None)
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment, cwd=NOTEBOOK.parent)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        started = Kernel(manager, client)
        for source in [*code[: last + 1], SETUP]:
            started.ask(source)
        yield started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def with_another_comment(idea: str) -> str:
    lines = [line.partition("  #")[0] for line in idea.splitlines()]
    return "\n# This is my idea.\n" + "\n\n".join(lines).replace("\n\n    ", "\n    ")


@pytest.mark.slow
def test_ideas_edited_run_again_restarted_and_killed(tmp_path):
    table, straight = {}, {}
    with kernel(tmp_path / "home") as first:
        for name, (idea, *edits) in IDEAS.items():
            row = table[name] = {"lines": len(idea.strip().splitlines())}
            made, epochs, straight[name], finished = first.answer(idea)
            assert epochs > 0 and finished == "True", name

            def say(edited: str, made=made) -> str:
                run, epochs, _, _ = first.answer(edited)
                return ("the old run" if epochs == 0 else "?") if run == made else f"new: {run}"

            row["same code"] = say(idea)
            row["a comment"] = say(with_another_comment(idea))
            for kind, edit in zip(("a character", "a constant", "a helper"), edits, strict=True):
                if edit is not None:
                    before, after = edit
                    assert before in idea, (name, before)
                    row[kind] = say(idea.replace(before, after, 1))
            row["undone"] = say(idea)
    with kernel(tmp_path / "home") as second:
        for name, (idea, *_) in IDEAS.items():
            run, epochs, weights, _ = second.answer(idea)
            table[name]["restarted"] = "the old run" if epochs == 0 else f"new: {run}"
            assert weights == straight[name]
    for name, (idea, *_) in IDEAS.items():
        home = tmp_path / f"killed {name}"
        with kernel(home, DIES="1") as dying:
            assert dying.dies(idea)
        with kernel(home) as third:
            run, epochs, weights, _ = third.answer(idea)
            exact = "exact" if weights == straight[name] else "other weights"
            table[name]["killed"] = f"{epochs} more, {exact}"
    table = pd.DataFrame(table).T
    print("\n" + table.map(lambda cell: str(cell)[:22]).to_string())
    known = table[["same code", "a comment", "undone", "restarted"]]
    assert (known == "the old run").all(axis=None)
    edited = table[["a character", "a constant", "a helper"]].stack().dropna()
    assert edited.str.startswith("new").all()
    assert table["killed"].str.endswith("exact").all()
    assert (table["lines"] <= 10).all()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch.utils.tensorboard", "trackio"])
def test_a_logger_is_three_lines(tmp_path, library, tables):
    """As README says; neither is a dependency, so that they are tried where they are installed."""
    pytest.importorskip(library)
    code = {
        "torch.utils.tensorboard": """
from torch.utils.tensorboard import SummaryWriter
writer = SummaryWriter("logs")
log = lambda run: writer.add_scalar("dice", run.history["val_dice"].iloc[-1], len(run.history))
""",
        "trackio": """
import trackio
trackio.init(project="cars")
log = lambda run: trackio.log(run.history.iloc[-1].to_dict())
""",
    }[library]
    code += """
from unetlib import Recipe, find_samples, fit, split_by_group
recipe = Recipe(widths=(2, 4), size=8, epochs=2)
print("epochs:", len(fit(recipe, *split_by_group(find_samples()), on_epoch=log).history))
"""
    environment = dict(HOME=str(tmp_path), TRACKIO_DIR=str(tmp_path / "trackio"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "epochs: 2" in done.stdout  # trackio says something after it
    assert any(path.is_file() for path in tmp_path.rglob("*") if "home" not in path.parts)
