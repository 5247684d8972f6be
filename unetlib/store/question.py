"""What a run is the answer to: settings, code, data, profile; and how a recipe is written down."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unetlib.recipe import BUILT_IN, Recipe, resolve
from unetlib.support.code import code_hash, label
from unetlib.support.errors import ModelFileError, RunError
from unetlib.support.profile import profile

FORMAT = 4  # of a run's folder and of what training means; runs of another are never resumed


@dataclass(frozen=True)
class MissingCode:
    """Code of a stored run that this program has not been given: its name and its hash."""

    setting: str
    name: str
    code: str
    __name__ = property(lambda self: self.name)  # what tables show, as of a function

    def __call__(self, *_, **__):
        remedy = f"define it, and pass it: Recipe({self.setting}={self.name})"
        raise RunError(f"{self.setting} {self.name!r} is code of another program; {remedy}.")


def stored(run) -> dict:
    """The settings of a run as JSON can hold them: own code by its name and its hash."""
    settings, code = dict(vars(run.recipe)), run.details["question"]["code"]
    for setting, names in BUILT_IN.items():
        if (value := settings[setting]) not in names:
            settings[setting] = dict(name=label(value), code=code[setting])
    return settings


def restored(settings: dict) -> Recipe:
    """The recipe that ``stored`` has written down; its own code is missing."""
    own = {key: MissingCode(key, **one) for key, one in settings.items() if isinstance(one, dict)}
    return Recipe(**settings | own)


def question_of(recipe: Recipe, data: str, best_by: tuple[str, str], metrics: Mapping) -> dict:
    """All that a run's name covers, as JSON can hold it.

    Of the settings, only what differs from the baseline, so that one added later leaves old runs
    alone; own code by its hash alone, so that it may be registered or passed, and renamed.
    RunError: code that cannot be hashed. ModelFileError: no such file to start from.
    """
    from unetlib.dataset import CarvanaDataset  # here: whoever lists runs needs no PyTorch
    from unetlib.support.processes import SharedLearner
    from unetlib.training import Learner, train

    settings = {name: value for name, value in recipe.changes.items() if name not in BUILT_IN}
    if recipe.start_from is not None:
        if not (path := Path(recipe.start_from)).is_file():
            raise ModelFileError(f"start_from={path}: no such file; give a run, or its best.pth.")
        settings["start_from"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    code = {"training": code_hash((train, Learner, SharedLearner, CarvanaDataset))}
    for setting in BUILT_IN:
        value = resolve(setting, named := getattr(recipe, setting))
        missing = isinstance(value, MissingCode)
        # By name, the U-Net also gets the recipe's settings.
        code[setting] = value.code if missing else code_hash((named == "unet", value))
    if best_by[0] in metrics:
        code["best_by"] = code_hash(metrics[best_by[0]])
    question = dict(format=FORMAT, settings=settings, code=code, best_by=list(best_by))
    question |= dict(data=data, profile=profile().name)
    return json.loads(json.dumps(question))  # as it is found again in run.json
