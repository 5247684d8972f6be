"""A terminal -> any of it: ``python -m unetlib COMMAND --help``.

python -m unetlib train --epochs 10 --lr 1e-4
python -m unetlib train --recipe fast
torchrun --nproc-per-node 2 -m unetlib train --batch-size auto
python -m unetlib export
python -m unetlib predict photo.jpg folder/ --model models/unet_model_int8.onnx --output masks
python -m unetlib compare --models models
python -m unetlib download --subset 40
python -m unetlib check data/carvana
python -m unetlib subset --cars 40 --size 480x320 SOURCE TARGET
"""

import argparse
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field, make_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import tyro
from accelerate import PartialState
from tyro.conf import OmitArgPrefixes, Positional, arg

from unetlib import config
from unetlib.benchmark import compare
from unetlib.carvana import DataError, check, find_samples, split_by_car
from unetlib.download import download, write_subset
from unetlib.export import export_all
from unetlib.formats import FILES, check_manifest, write_manifest
from unetlib.inference import image_files, load_predictor
from unetlib.learner import start_accelerator
from unetlib.model import ModelFileError, load_model, save_model
from unetlib.recipe import Recipe
from unetlib.runs import RunError, find_runs
from unetlib.submission import write_masks, write_submission
from unetlib.training import TrainingError, fit

DESCRIPTION = "Train, export, compare and use a small U-Net on the Carvana Image Masking Challenge."

DATA_HELP = "Data set in Carvana's layout; default: UNETLIB_DATA."
Data = Annotated[Path | None, arg(help=DATA_HELP)]
Json = Annotated[bool, arg(help="Print one JSON object as the last line of stdout.")]


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
        processes = start_accelerator()
        if processes.is_main_process:
            print(config.profile(), file=sys.stderr)
        else:
            warnings.simplefilter("ignore")
        output_dir = _folder(self.output_dir, config.models_dir)
        check_manifest(output_dir)
        train, val = _split(self.data)
        recipe = config.profile().scale(self.settings)
        run = fit(recipe, config.profile().thin(train), val, retrain=self.retrain)
        if not processes.is_main_process:
            return None
        if run.history.empty:
            raise TrainingError("Stopped before an epoch was finished: nothing to write yet.")
        checkpoint = output_dir / FILES["pytorch"]
        model, content = load_model(run.checkpoint)
        save_model(checkpoint, model, content["size"], content["threshold"], **content["info"])
        write_manifest(checkpoint.parent, [checkpoint])
        return dict(
            best_dice=run.best_dice,
            best_epoch=run.best_epoch,
            finished=run.finished,
            seconds=run.seconds,
            images_per_second=run.images_per_second,
            device=run.device,
            processes=run.details["processes"],
            precision=run.precision,
            batch_size=run.details["batch_size"],
            lr=run.details["lr"],
            run=str(run.folder),
            checkpoint=str(checkpoint),
        )


def _train_from(arguments: list[str] | None) -> type[Train]:
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
        checkpoint = self.checkpoint or _newest_checkpoint()
        train, val = _split(self.data)
        output_dir = _folder(self.output_dir, config.models_dir)
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
        processes = start_accelerator(patience=timedelta(days=7))  # computers may differ in speed
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        predictor = load_predictor(
            self.model,
            processes.device,
            threads=max(1, (os.cpu_count() or 1) // here) if here > 1 else None,
            trust=self.trust,
            runtime=self.runtime,
        )
        images = image_files(self.images)
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
        _, val = _split(self.data)
        with redirect_stdout(sys.stderr):  # what is left out is no part of the table
            table = compare(_folder(self.models, config.models_dir), val, runtimes=self.runtimes)
        return dict(formats=table.to_dict("records"))


@dataclass
class Download:
    """Fetch the Carvana data from Kaggle (or unpack archives you have) and check it."""

    target: Path | None = None
    """Where to unpack; default: data/carvana."""
    subset: int | None = None
    """Afterwards write a small set of this many cars beside it."""
    test: bool = False
    """Also the 100,064 test photos."""
    source: Annotated[Path | None, arg(name="from")] = None
    """A folder that holds the archives already; nothing is fetched."""
    json: Json = False

    def __call__(self) -> dict:
        folder = download(self.target, subset=self.subset, test=self.test, source=self.source)
        return dict(data=str(folder))


@dataclass
class Subset:
    """Write a downsampled subset of a full set, in the same layout."""

    source: Positional[Path]
    target: Positional[Path]
    cars: int
    """How many cars."""
    size: str = "480x320"
    """Width x height of the images, in pixels."""
    seed: int = 0
    """Which cars."""
    json: Json = False

    def __call__(self) -> dict:
        width, _, height = self.size.partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise DataError(f"--size {self.size}: give WIDTHxHEIGHT, for example 480x320.")
        size = int(width), int(height)
        write_subset(self.source, self.target, cars=self.cars, size=size, seed=self.seed)
        return dict(data=str(self.target))


@dataclass
class Check:
    """Find all that is wrong with a data set: damaged pictures, masks and csv files that disagree.

    Ends with status 1 if there is anything.
    """

    data: Annotated[Positional[Path | None], arg(help=DATA_HELP)] = None
    json: Json = False

    def __call__(self) -> dict:
        folder = self.data if self.data is not None else config.data_dir()
        problems = check(folder).to_dict("records")
        if self.json:
            return dict(data=str(folder), problems=problems)
        for row in problems:
            print(f"{folder / row['file']}: {row['problem']}; {row['remedy']}.")
        return dict(data=str(folder), problems=len(problems))


def _folder(given: Path | None, default) -> Path:
    return given if given is not None else default()


def _split(data: Path | None):
    return split_by_car(find_samples(data), fraction=0.2, seed=0)


def _newest_checkpoint() -> Path:
    runs = find_runs()
    if not runs:
        raise ModelFileError(
            f"{config.runs_dir()}: no trained run; run python -m unetlib train first."
        )
    return runs[-1].checkpoint


def _show(result: dict) -> None:
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            print("  ".join(f"{column:>14}" for column in columns))
            for row in value:
                print("  ".join(f"{_text(row[column]):>14}" for column in columns))
        else:
            print(f"{name}: {_text(value)}")


def _text(value) -> str:
    if isinstance(value, list):
        return _text(", ".join(value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).encode(errors="backslashreplace").decode()  # a name need not be UTF-8


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 1 when it failed, and stderr says why, or when ``check`` has found
        problems; 130 when a training was stopped.
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    commands = {
        command.__name__.lower(): command
        for command in (_train_from(arguments), Export, Predict, Compare, Download, Subset, Check)
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="python -m unetlib", description=DESCRIPTION, args=arguments
    )
    try:
        result = command()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (DataError, ModelFileError, RunError, TrainingError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if PartialState._shared_state:  # not after an error: the other processes would be waited for
        PartialState().destroy_process_group()
    if result is None:
        return 0
    if command.json:
        print(json.dumps(result))
    else:
        _show(result)
    if result.get("problems"):
        return 1
    return 0 if result.get("finished", True) else 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold letters that a terminal lacks
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
