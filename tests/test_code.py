"""What code is: the same hash for the same behaviour, another one for another."""

import functools
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_any_order import opened
from torchvision.transforms import v2

from unetlib.dataset import decode
from unetlib.losses import LOSSES
from unetlib.support.code import code_hash, label
from unetlib.support.errors import RunError
from unetlib.training import Learner, train

CELL = '''
import torch
from functools import partial
GAMMA = 2.0
def deeper(x):
    return x * 3
def helper(x):
    return deeper(x) + GAMMA
class Base:
    def scale(self):
        return 4
class Loss(Base):
    """A loss."""
    weight = 5
    def __init__(self, alpha=6):
        self.alpha = alpha
    def __call__(self, logits, masks):
        return self.alpha * self.weight * self.scale()
def outer(value):
    def inner(x):
        return x + value
    return inner
def f(logits, masks, power=7, *, offset=8):
    """Focal."""
    def nested(x):
        "Nested."
        return x - 9
    class Local:
        """Local."""
        size = 10
    try:
        odd = [x * 11 for x in (logits, masks)]
    except ValueError:
        odd = 12
    return helper(nested(odd)) ** power + offset + torch.sigmoid(logits).mean() + Local.size
made = outer(13)
bound = partial(f, power=14)
loss = Loss(15)
tensor = torch.tensor([16.0])
layer = torch.nn.Linear(1, 1)
torch.nn.init.constant_(layer.weight, 17.0), torch.nn.init.zeros_(layer.bias)
tool = lambda x: x + 18
'''
THINGS = ["f", "Loss", "made", "bound", "loss", "tensor", "layer", "tool"]

PROCESS = """
import enum, dataclasses, re, sys
from pathlib import Path
import torch
from torchvision.transforms import v2
from unetlib.support.code import code_hash
from unetlib.training import Learner, train
NAMES = {"roof", "wheel", "door", "window"}
class Kind(enum.Enum):
    A = 1
    B = "two"
class Bits(enum.Flag):
    A = 1
    B = 2
@dataclasses.dataclass
class Settings:
    names: frozenset = frozenset(NAMES)
    kind: Kind = Kind.A
    more: list = dataclasses.field(default_factory=list)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.layer.weight), torch.nn.init.ones_(self.layer.bias)
    def forward(self, x):
        return super().forward(x) if x in {"roof", "wheel", "door"} else NAMES
def f(x):
    return x in {"roof", "wheel", "door"} or x in NAMES
things = [f, NAMES, Kind, Kind.B, Bits, Settings, Settings(), Net, Net(), Path("a"), train]
things += [torch.float32, torch.device("cpu"), torch.optim.Adam, torch.channels_last, Learner]
things.append(re.compile("b"))
things.append(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(9), v2.Lambda(f)]))
print(*map(code_hash, things))
Bits.A | Bits.B, Net().eval()
print(*map(code_hash, things))
"""


@pytest.fixture(scope="module", autouse=True)
def other_process():
    """Imports PyTorch while the tests before run here; with another order of sets than here."""
    env = os.environ | {"PYTHONHASHSEED": "1"}
    settings = dict(stdout=subprocess.PIPE, text=True, env=env)
    with subprocess.Popen([sys.executable, "-c", PROCESS], **settings) as process:
        yield process


def run_cell(source: str, name: str = "a cell") -> dict:
    scope = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), scope)
    return scope


def hashes(source: str, name: str = "a cell") -> dict[str, str]:
    scope = run_cell(source, name)
    return {thing: code_hash(scope[thing]) for thing in THINGS}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),  # the same cell again
        ("GAMMA = 2.0", "GAMMA = 2.0  # a comment"),
        ("import torch\n", "import torch\n\n\n# moved\n" * 150),
        ('    """Focal."""\n', ""),
        ('"""Focal."""', '"""Focal loss,\n    of two lines."""'),
        ('        "Nested."\n', ""),
        ('"""Local."""', '"""Said otherwise."""'),
        ('"""Local."""', "# no docstring"),
        ('"""A loss."""', '"""Said otherwise."""'),
        ("return x * 3", '"New."\n\n    # a comment\n    return (\n        x * 3\n    )'),
        ("def helper(x):", "def helper(x: float) -> float:"),
    ],
)
def test_what_does_the_same_has_the_same_hash(old, new):
    assert old in CELL
    assert hashes(CELL.replace(old, new) if old else CELL, "another file") == hashes(CELL)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("GAMMA = 2.0", "GAMMA = 2", "f bound"),
        ("x * 3", "x + 3", "f bound"),
        ("deeper(x) + GAMMA", "deeper(x) + 2 * GAMMA", "f bound"),
        ("return 4", "return 40", "Loss loss"),
        ("weight = 5", "weight = 50", "Loss loss"),
        ("def __call__", "def call", "Loss loss"),
        ("alpha=6", "alpha=60", "Loss loss"),
        ("self.weight *", "self.weight +", "Loss loss"),
        ("power=7", "power=70", "f bound"),
        ("offset=8", "offset=80", "f bound"),
        ("x - 9", "x - 90", "f bound"),
        ("size = 10", "size = 100", "f bound"),
        ("x * 11", "x * 110", "f bound"),
        ("ValueError", "TypeError", "f bound"),
        ("odd = 12", "odd = 120", "f bound"),
        (".mean()", ".sum()", "f bound"),
        ("torch.sigmoid", "torch.tanh", "f bound"),
        ("logits, masks, power", "masks, logits, power", "f bound"),
        ("outer(13)", "outer(130)", "made"),
        ("power=14", "power=140", "bound"),
        ("Loss(15)", "Loss(150)", "loss"),
        ("[16.0]", "[160.0]", "tensor"),
        ("[16.0]", "[[16.0]]", "tensor"),
        ("17.0", "170.0", "layer"),
        ("x + 18", "x + 180", "tool"),
    ],
)
def test_what_was_edited_has_another_hash(old, new, changed):
    assert old in CELL
    before, after = hashes(CELL), hashes(CELL.replace(old, new))
    assert {thing for thing in THINGS if before[thing] != after[thing]} == set(changed.split())


def test_a_kernel_hashes_what_runs_and_autoreload_changes_it(tmp_path):
    module = tmp_path / "mine.py"
    module.write_text("FACTOR = 2\ndef helper(x):\n    return x * FACTOR\n")
    (tmp_path / "notebooks").mkdir()
    notebook = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    (tmp_path / "notebooks" / "a.ipynb").write_text(notebook)
    with opened("a", tmp_path, tmp_path) as sitting:
        start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        start += (
            "from unetlib.support.code import code_hash\nimport mine\nfrom mine import helper\n"
        )
        cell = "def f(x):\n    return mine.helper(x)"
        sitting.ask(start + "%load_ext autoreload\n%autoreload 2")
        sitting.ask(cell)

        def ask(before: str = "") -> str:
            return sitting.ask(f"{before}\nprint(code_hash(f), code_hash(helper))")[0]

        first = ask()
        sitting.ask(cell.replace("\n", "  # again\n"))
        write = f"open({str(module)!r}, 'w').write('FACTOR = 30\\ndef helper(x):\\n    return x * "
        assert ask() == first == ask(f"_ = {write}FACTOR\\n')")
        second = ask()
        assert not set(first.split()) & set(second.split())
        assert second == ask(f"_ = {write}FACTOR  # a comment\\n')") == ask()


def test_what_cannot_be_hashed_is_named_and_a_name_heals_it(tmp_path):
    with open(tmp_path / "log", "w") as handle:
        scope = {"__name__": "__main__", "handle": handle, "lock": threading.Lock()}
        exec("def log(x):\n    handle.write(x)\ndef focal(x):\n    return log(x)", scope)
        exec("class Held:\n    pass\nheld = Held()\nheld.key = lock", scope)
        with pytest.raises(RunError, match="focal uses `handle` of `log`, a TextIOWrapper"):
            code_hash(scope["focal"])
        with pytest.raises(RunError, match="Held uses `key`, a lock"):
            code_hash(scope["held"])
        exec("class Loss:\n    def __call__(self):\n        lock.acquire()", scope)
        with pytest.raises(RunError, match=r"Loss uses `lock` of `__call__`, a lock.*unetlib_name"):
            code_hash(scope["Loss"])
        for unnamed in (scope["lock"], (x for x in "ab")):
            with pytest.raises(RunError):
                code_hash(unnamed)
        scope["log"].unetlib_name = "log 1"
        first = code_hash(scope["focal"])
        scope["log"].unetlib_name = "log 2"
        assert code_hash(scope["focal"]) != first
        scope["held"].unetlib_name = "held"
        assert code_hash(scope["held"]) == code_hash(scope["held"])


def test_use_changes_no_hash():
    source = """
import functools, torch
calls = 0
def f(x):
    global calls
    calls += 1
    return x
@functools.lru_cache
def kept(x):
    return x + 1
@torch.autocast("cpu", torch.bfloat16)
def cast(x):
    return x @ x
class Slow(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)
"""
    scope = run_cell(source)
    things = [scope[name] for name in ("f", "kept", "cast", "Slow")]
    before = [code_hash(thing) for thing in things]
    f, kept, cast, slow = things
    f(1), kept(1), cast(torch.ones(2, 2)), slow([torch.ones(1, requires_grad=True)], 0.1).step()
    assert [code_hash(thing) for thing in things] == before
    for old, new in (("x + 1", "x + 2"), ("x @ x", "x * x"), ("bfloat16", "float16")):
        edited = run_cell(source.replace(old, new))
        found = [code_hash(edited[name]) for name in ("f", "kept", "cast", "Slow")]
        assert sum(a != b for a, b in zip(before, found, strict=True)) == 1


def test_a_decorator_of_torch_hides_nothing():
    def hashed(number: int) -> str:
        scope = run_cell(f"import torch\n@torch.no_grad()\ndef f(x):\n    return x * {number}")
        return code_hash(scope["f"])

    assert hashed(2) == hashed(2) != hashed(3)


OF_THE_LIBRARY = """
import tqdm
kept, SIZE = {}, 1
def f(x):
    return tqdm, kept, SIZE, lock
"""


def test_an_edit_of_the_library_counts_but_not_what_it_registers(monkeypatch):
    before = code_hash(Learner), code_hash(train)
    monkeypatch.setitem(LOSSES, "own", lambda logits, masks: 0)
    assert (code_hash(Learner), code_hash(train)) == before
    monkeypatch.setattr(Learner, "total", lambda self, value: value + 1)
    assert code_hash(Learner) != before[0]
    found = []
    for edit in ("", "kept[1] = 2", "lock = other", "SIZE = 2", "tqdm = max", "tqdm = part(max)"):
        scope = {"__name__": "unetlib.own", "lock": threading.Lock(), "other": threading.Lock()}
        scope["part"] = functools.partial
        exec(f"{OF_THE_LIBRARY}\n{edit}", scope)
        found.append(code_hash(scope["f"]))
    assert found[0] == found[1] == found[2] and len(set(found[2:])) == 4


def test_modules_of_the_user_count_by_what_is_used_of_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "def used(x):\n    return x\ndef unused(x):\n    return x\n"
    (tmp_path / "own_module.py").write_text(source)
    scope = run_cell("""
import own_module
def chain(x):
    return own_module.used(x)
def inside(x):
    from own_module import used
    return used(x)
""")
    things, module = (scope["chain"], scope["inside"]), scope["own_module"]
    before = [code_hash(thing) for thing in things]
    module.unused = lambda x: x + 1
    assert [code_hash(thing) for thing in things] == before
    module.used = lambda x: x + 1
    assert not {code_hash(thing) for thing in things} & set(before)


def test_a_new_name_of_a_function_changes_nothing():
    found = {code_hash(run_cell(f"def {name}(x):\n    return x")[name]) for name in ("f", "g")}
    assert len(found) == 1


def test_arrays_and_tables_count_by_their_content():
    def table(*values):
        return pd.DataFrame({"a": values})

    for make in (np.array, table, np.random.default_rng):
        assert code_hash(make(1)) == code_hash(make(1)) != code_hash(make(2))


def test_depth_and_cycles_are_no_problem():
    deep: list = []
    for _ in range(3_000):
        deep = [deep]
    ring: list = [1]
    ring.append(ring)
    assert code_hash(deep) == code_hash(deep) != code_hash(ring) == code_hash(ring)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ("bce", "bce"),
        (train, "train"),
        (functools.partial(Learner), "partial(Learner)"),
        (v2.Compose([v2.Identity()]), "Compose"),
        (torch.optim.Adam, "Adam"),
    ],
)
def test_a_label_is_short(thing, name):
    assert label(thing) == name


def test_other_processes_find_the_same_hashes(other_process, capsys):
    run_cell(PROCESS)
    shown, _ = other_process.communicate()
    found = [line.split() for line in (capsys.readouterr().out + shown).splitlines()]
    assert found == [found[0]] * 4
    assert len(set(found[0])) == len(found[0])


EDITED = [
    ("f = lambda x: x.clamp(min=1)", "f = lambda x: x.clamp(max=1)"),  # the names of arguments
    ("__w = 1\nf = lambda: __w", "__w = 2\nf = lambda: __w"),
    ("def f(): pass\nf._w = 1", "def f(): pass\nf._w = 2"),
    (
        "f = types.SimpleNamespace(run_name='a', g=1)",
        "f = types.SimpleNamespace(run_name='a', g=2)",
    ),
    ("f = torch.nn.Dropout(0.5)", "f = torch.nn.Dropout(0.5).eval()"),
    ("import focal\nf = lambda x: focal.focal(x)", "focal.W = 2\nf = lambda x: focal.focal(x)"),
    ("import focal\nf = lambda x: g(focal)", "focal.W = 2\nf = lambda x: g(focal)"),
]


@pytest.mark.parametrize(("old", "new"), EDITED)
def test_what_hides_an_edit_does_not_hide_it(old, new, tmp_path, monkeypatch):
    (tmp_path / "focal.py").write_text("W = 1\ndef focal(x):\n    return x * W\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "focal", raising=False)
    hashes, scope = [], dict(torch=torch, types=types, __name__="__main__", g=max)
    for source in (old, new):
        exec(source, scope)
        hashes.append(code_hash(scope["f"]))
    assert hashes[0] != hashes[1]


def test_what_pytorch_does_when_code_is_used_is_no_edit():
    class Mine(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr, momentum=0.9)

    before = code_hash(Mine)
    Mine([torch.zeros(1, requires_grad=True)], 0.1).step()
    assert code_hash(Mine) == before
    layers = [torch.nn.Linear(1, 1) for _ in range(2)]
    for layer in layers:  # PyTorch numbers hooks, one after the other
        torch.nn.init.ones_(layer.weight), torch.nn.init.ones_(layer.bias)
        layer.register_forward_hook(print)
    assert code_hash(layers[0]) == code_hash(layers[1])


def test_the_librarys_globals_count_whatever_takes_their_place(monkeypatch):
    import unetlib.losses

    others = [torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([w])) for w in (2.0, 9.0)]
    others += [torch.nn.functional.mse_loss, functools.partial(LOSSES["bce"], weight=2)]
    found = {code_hash(LOSSES["bce_dice"])}
    for other in others:
        monkeypatch.setattr(unetlib.losses, "bce_loss", other)
        found.add(code_hash(LOSSES["bce_dice"]))
    assert len(found) == 5


def test_a_progress_bar_of_another_kind_is_no_other_code(monkeypatch):
    """tqdm.auto gives a notebook another class than a terminal."""
    import tqdm.asyncio
    import tqdm.notebook

    hashes = set()
    for kind in (tqdm.std.tqdm, tqdm.asyncio.tqdm_asyncio, tqdm.notebook.tqdm_notebook):
        monkeypatch.setattr("unetlib.training.tqdm", kind)
        monkeypatch.setattr("unetlib.dataset.tqdm", kind)
        hashes.add((code_hash(train), code_hash(decode)))
    assert len(hashes) == 1
