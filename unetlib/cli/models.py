"""Commands about models: train, export, predict, compare.

Paths and arguments are checked before PyTorch is imported.
"""

import argparse
import os
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field, make_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from unetlib import config
from unetlib.cli.data import Data, Json
from unetlib.recipe import Recipe
from unetlib.support import folders
from unetlib.support.files import whole_file


@dataclass
class Train:
    """Train a U-Net and write the best model to OUTPUT_DIR.

    Started by torchrun or accelerate launch, all their processes train one model together.
    """

    settings: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    recipe: Literal["baseline", "fast"] = "baseline"
    """Where the settings start from."""
    data: Data = None
    output_dir: Path | None = None
    """Where unet_model.pth is written; default: models."""
    retrain: bool = False
    """Train anew even if this recipe was trained on this data before."""
    json: Json = False

    def __call__(self) -> dict | None:
        from unetlib.deploy.manifest import FILES, check_manifest, write_manifest

        is_main = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch say it
        if not is_main:
            warnings.simplefilter("ignore")
        output_dir = self.output_dir or folders.models_dir()
        check_manifest(output_dir)
        train, val = _split(self.data)
        recipe = config.profile().scale(self.settings)
        if is_main:
            print(config.profile(), file=sys.stderr)

        from unetlib import fit
        from unetlib.training import TrainingError

        run = fit(recipe, config.profile().thin(train), val, retrain=self.retrain)
        if not is_main:
            return None
        if run.history.empty:
            raise TrainingError("Stopped before an epoch was finished: nothing to write yet.")
        checkpoint = output_dir / FILES["pytorch"]
        with whole_file(checkpoint) as part:
            shutil.copyfile(run.checkpoint, part)
        write_manifest(output_dir, [checkpoint])
        names = ("best_dice", "best_epoch", "finished", "seconds", "images_per_second")
        facts = ("device", "processes", "precision", "batch_size", "lr")
        return dict(
            {name: getattr(run, name) for name in names},
            **{name: run.details[name] for name in facts},
            run=str(run.folder),
            checkpoint=str(checkpoint),
        )


def train_from(arguments: list[str] | None) -> type[Train]:
    """``Train`` with the settings of the recipe that the arguments name as its defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    if parser.parse_known_args(arguments)[0].recipe != "fast":
        return Train
    settings = ("settings", OmitArgPrefixes[Recipe], field(default_factory=Recipe.fast))
    return make_dataclass("Train", [settings], bases=(Train,), namespace={"__doc__": Train.__doc__})


@dataclass
class Export:
    """Write a trained model in every format and prove that they agree."""

    checkpoint: Path | None = None
    """A run's best.pth or an exported .pth; default: the newest run."""
    data: Data = None
    output_dir: Path | None = None
    """Where the files are written; default: models."""
    json: Json = False

    def __call__(self) -> dict:
        from unetlib import ModelFileError, find_runs
        from unetlib.deploy.manifest import check_file, check_manifest

        runs = [] if self.checkpoint else find_runs()
        if not self.checkpoint and not runs:
            where = folders.runs_dir()
            raise ModelFileError(f"{where}: no trained run; run python -m unetlib train first.")
        checkpoint = self.checkpoint or runs[-1].checkpoint
        check_file(checkpoint, trust=True)
        output_dir = self.output_dir or folders.models_dir()
        check_manifest(output_dir)
        train, val = _split(self.data)

        from unetlib import export_all

        table = export_all(checkpoint, output_dir, train=config.profile().thin(train), val=val)
        return dict(checkpoint=str(checkpoint), formats=table.to_dict("records"))


@dataclass
class Predict:
    """Write masks of images: PNG files in a folder, or Kaggle's csv of run lengths.

    A stopped run goes on where it was. Started by torchrun or accelerate launch, the processes
    share the images.
    """

    images: Positional[list[Path]]
    """Image files, or folders of them."""
    model: Path
    """A model file of any format."""
    output: Path
    """A folder for <stem>_mask.png, or a FILE.csv."""
    flip: bool = False
    """Predict the mirrored picture too and take the mean: slower, a little better."""
    runtime: Literal["openvino", "compile"] | None = None
    """Instead of the file's own: OpenVINO for ONNX files, torch.compile for .pth files."""
    trust: bool = False
    """Open a file that manifest.json beside it does not vouch for."""
    json: Json = False

    def __call__(self) -> dict | None:
        from unetlib.deploy.images import image_files
        from unetlib.deploy.manifest import check_file

        check_file(self.model, self.trust)
        images = image_files(self.images)

        from unetlib import load_predictor, write_masks, write_submission
        from unetlib.support.processes import start_accelerator

        processes = start_accelerator(timeout=timedelta(days=7))  # computers may differ in speed
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        predictor = load_predictor(
            self.model,
            processes.device,
            threads=max(1, (os.cpu_count() or 1) // here) if here > 1 else None,
            trust=self.trust,
            runtime=self.runtime,
        )
        write = write_submission if self.output.suffix.lower() == ".csv" else write_masks
        unreadable = write(predictor, images, self.output, flip=self.flip, accelerator=processes)
        if not processes.is_main_process:
            return None
        return dict(
            images=len(images),
            unreadable=[file for file, _ in unreadable],
            output=str(self.output),
            model=predictor.name,
        )


@dataclass
class Compare:
    """Compare all exported formats: Dice, agreement, latency, size, memory."""

    models: Path | None = None
    """The folder that export wrote; default: models."""
    data: Data = None
    runtimes: tuple[Literal["openvino", "compile"], ...] = ("openvino", "compile")
    """Extra ones, where they are installed."""
    json: Json = False

    def __call__(self) -> dict:
        from unetlib.deploy.manifest import exported_files

        models = self.models or folders.models_dir()
        exported_files(models)
        _, val = _split(self.data)

        from unetlib import compare

        with redirect_stdout(sys.stderr):  # what is left out is no part of the table
            table = compare(models, val, runtimes=self.runtimes)
        return dict(formats=table.to_dict("records"))


def _split(data: Path | None):
    from unetlib import find_samples, split_by_car

    return split_by_car(find_samples(data), fraction=0.2, seed=0)
