"""The commands, a function each: parameters are options, the result is what is printed.

Paths and arguments are checked before PyTorch is imported.
"""

import os
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Literal, TypedDict, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg

import unetlib  # its names are imported when they are first used
from unetlib.deploy import manifest
from unetlib.deploy.images import CSV, code_files, mask_files
from unetlib.recipe import BUILT_IN, Recipe
from unetlib.support import folders
from unetlib.support.files import file_hash, whole_file

DATA_HELP = "A folder as Carvana's, or of images/, masks/; default: UNETLIB_DATA, or the model's."
Data = Annotated[Path | None, arg(help=DATA_HELP)]
# For the help alone: __main__ looks for it.
Json = Annotated[bool, arg(help="Print one JSON object as the last line of stdout.")]
Network = Annotated[str | None, arg(help="Own network, MODULE:NAME of its class or function.")]

# A recipe as options, which cannot be functions: the built-in names are offered. What is not typed
# is not in the dict, so that the recipe that is named decides on it.
TYPES = get_type_hints(Recipe) | {name: Literal[names] for name, names in BUILT_IN.items()}
OPTIONS = {
    name: Annotated[kind, arg(help_behavior_hint=f"(baseline: {getattr(Recipe, name)})")]
    for name, kind in TYPES.items()
    if name != "network"
}
Settings = TypedDict("Settings", OPTIONS, total=False)
Settings.__doc__ = Recipe.__doc__
RECIPES = dict(baseline=Recipe) | {n: getattr(Recipe, n) for n in ("fast", "gpu", "best", "few")}


def train(
    settings: OmitArgPrefixes[Settings],
    recipe: Literal[tuple(RECIPES)] = "baseline",
    network: Network = None,
    data: Data = None,
    output_dir: Path | None = None,
    retrain: bool = False,
    json: Json = False,
) -> dict | None:
    """Train a network and write the best model to OUTPUT_DIR.

    Started by torchrun or accelerate launch, all their processes train one model together.

    Args:
        recipe: Where the settings start from: fast (minutes), gpu (the same for a GPU), best (an
            evening on a laptop), few (fine-tunes data/pretrained's weights on 10 to 50 pictures).
        output_dir: Where unet_model.pth is written; default: models.
        retrain: Train again even if this recipe was trained on this data before.
    """
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    checkpoint = (output_dir or folders.models_dir()) / manifest.FILES["pytorch"]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    manifest.read_manifest(checkpoint.parent)  # or an error, before any work
    asked = RECIPES[recipe](**settings, network=_imported(network) or "unet")
    scaled = (profile := unetlib.profile()).scale(asked)
    train_rows, val_rows = unetlib.split_by_group(unetlib.find_samples(data))
    if rank == "0":
        changed = {name: one for name, one in vars(scaled).items() if one != getattr(asked, name)}
        print(profile, f"sets {changed}" if changed else "", file=sys.stderr)
    else:
        warnings.simplefilter("ignore")
    run = unetlib.fit(scaled, profile.thin(train_rows), val_rows, retrain=retrain)
    if rank != "0":
        return None
    run.model()  # refuses a damaged file before it replaces a sound one
    with manifest.folder_lock(checkpoint.parent):
        with whole_file(checkpoint) as part:
            shutil.copyfile(run.checkpoint, part)
        manifest.write_manifest(checkpoint.parent, [checkpoint])
    second = ["best_dice_objects"] if "val_dice_objects" in run.history.dropna(axis=1) else []
    names = ("best_dice", *second, "best_epoch", "finished", "seconds", "images_per_second")
    facts = ("device", "processes", "precision", "batch_size", "lr")
    result = {one: getattr(run, one) for one in names} | {one: run.details[one] for one in facts}
    return result | dict(run=str(run.folder), checkpoint=str(checkpoint))


def export(
    checkpoint: Path | None = None,
    network: Network = None,
    data: Data = None,
    output_dir: Path | None = None,
    json: Json = False,
) -> dict:
    """Write a trained model in every format and prove that they agree.

    Args:
        checkpoint: A run's best.pth or an exported .pth; default: the newest run.
        output_dir: Where the files are written; default: models.
    """
    if checkpoint is None and not (runs := unetlib.find_runs()):
        raise unetlib.ModelFileError(f"{folders.runs_dir()}: no run: python -m unetlib train.")
    before = (output_dir := output_dir or folders.models_dir()) / manifest.FILES["pytorch"]
    if not checkpoint and before.is_file() and file_hash(before) != file_hash(runs[-1].checkpoint):
        what = f"was of another training than the run asked for last, {runs[-1].folder.name}"
        warnings.warn(f"{before}: {what}, which replaces it.", stacklevel=1)
    manifest.check_file(checkpoint := checkpoint or runs[-1].checkpoint, trust=True)
    train_rows, val_rows = rows_for(checkpoint, data)
    rows = dict(train=unetlib.profile().thin(train_rows), val=val_rows)
    table = unetlib.export_all(checkpoint, output_dir, **rows, network=_imported(network))
    return dict(checkpoint=str(checkpoint), formats=table.to_dict("records"))


def predict(
    images: Positional[list[Path]],
    output: Path,
    model: Path | None = None,
    flip: bool = False,
    overlay: bool = False,
    cutout: bool = False,
    runtime: manifest.Runtime | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
    network: Network = None,
    trust: bool = False,
    json: Json = False,
) -> dict | None:
    """Write masks of images: PNG files in a folder, or Kaggle's csv of run lengths.

    A stopped run goes on where it was; processes of torchrun or accelerate launch share the images.

    Args:
        images: Image files, or folders of them.
        output: A folder for <stem>_mask.png, or a FILE.csv or FILE.csv.gz.
        model: A model file of any format; default: models/unet_model.pth, else data/pretrained's.
        flip: Predict the mirrored picture too and take the mean: slower, a little better.
        overlay: Also write <stem>_overlay.png, the picture with the object tinted.
        cutout: Also write <stem>_cutout.png, the object on a transparent ground.
        runtime: Instead of the file's own: OpenVINO for ONNX files, torch.compile for .pth files.
        precision: Of a .pth file: auto is the fastest here, for masks that differ in some pixels.
        trust: Open a file that manifest.json beside it does not vouch for.
    """
    if model is not None:
        manifest.check_file(model, trust=True, runtime=runtime)  # load_predictor asks once more
    images, to_csv = unetlib.image_files(images), output.name.lower().endswith(CSV)
    drawn = dict.fromkeys(["overlay"] * overlay + ["cutout"] * cutout, True)
    if drawn and to_csv:
        raise unetlib.DataError(f"{output}: takes no --{' --'.join(drawn)}; give a folder.")
    code_files(images, output) if to_csv else mask_files(images, output, ["mask", *drawn])
    how = dict(precision=precision, trust=trust, runtime=runtime, network=_imported(network))

    from unetlib.support.processes import start_accelerator

    processes = start_accelerator()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = max(1, (os.cpu_count() or 1) // here) if here > 1 else None
    with redirect_stdout(sys.stderr if processes.is_main_process else None):  # which file answers
        predictor = unetlib.load_predictor(model, processes.device, threads, **how)
    write = unetlib.write_submission if to_csv else unetlib.write_masks
    left_out = write(predictor, images, output, flip=flip, **drawn)
    if not processes.is_main_process:
        return None
    result = dict(images=len(images), masks=len(images) - len(left_out), output=str(output))
    result["unreadable"] = [file for file, _ in left_out]
    return result | dict(model=f"{predictor.name}, {predictor.path}")


def score(submission: Positional[Path], solution: Path | None = None, json: Json = False) -> dict:
    """Score what predict wrote into a csv file as Kaggle does, by the mean Dice of its pictures.

    The true masks are such a file, too; default: those of the embedded test pictures.
    """
    dice = unetlib.score(submission, solution).set_index("img")["dice"]
    worst = dict(worst=dice.idxmin(), worst_dice=dice.min())
    return dict(images=len(dice), dice=dice.mean()) | worst


def compare(
    models: Path | None = None,
    data: Data = None,
    runtimes: tuple[manifest.Runtime, ...] = ("openvino", "compile"),
    network: Network = None,
    json: Json = False,
) -> dict:
    """Compare all exported formats: Dice, agreement, latency, size, memory.

    Args:
        models: The folder that export wrote; default: models.
        runtimes: Extra ones, where they are installed.
    """
    manifest.exported_files(models := models or folders.models_dir())
    _, val_rows = rows_for(models / manifest.FILES["pytorch"], data)
    with redirect_stdout(sys.stderr):  # what is left out is no part of the table
        table = unetlib.compare(models, val_rows, runtimes=runtimes, network=_imported(network))
    return dict(formats=table.astype(object).where(table.notna(), None).to_dict("records"))


def page(
    folder: Positional[Path | None] = None,
    models: Path | None = None,
    serve: bool = False,
    json: Json = False,
) -> dict:
    """Write a web page that segments photos in the visitor's browser, for any web server.

    Args:
        folder: Where; default: page.
        models: A folder that export wrote; default: models, else data/pretrained's weights.
        serve: Then show it, from this computer alone, until Ctrl-C.
    """
    result = unetlib.write_page(folder, models)
    if serve:
        unetlib.serve_page(Path(result["page"]).parent)
    files = result.pop("files")
    return result | dict(files=len(files), bytes=sum(files.values()))


def download(
    target: Path | None = None,
    test: bool = False,
    source: Annotated[Path | None, arg(name="from")] = None,
    json: Json = False,
) -> dict:
    """Fetch the Carvana data from Kaggle (or unpack archives you have) and check it.

    Args:
        target: Where to unpack; default: data/carvana.
        test: Also the 100,064 test photos.
        source: A folder that holds the archives already; nothing is fetched.
    """
    return dict(data=str(unetlib.download(target, test=test, source=source)))


def subset(
    source: Positional[Path],
    target: Positional[Path],
    cars: int,
    size: tuple[int, int] = (320, 480),
    seed: int = 0,
    json: Json = False,
) -> dict:
    """Write a downsampled subset of a full set, in the same layout.

    Args:
        cars: How many cars.
        size: Height and width of the images in pixels.
        seed: Which cars.
    """
    unetlib.write_subset(source, target, cars=cars, size=size, seed=seed)
    return dict(data=str(target))


def check(data: Positional[Data] = None, json: Json = False):
    """Find all that is wrong with a data set's pictures, masks and csv files; if so, status 1."""
    folder = data if data is not None else folders.data_dir()
    problems = unetlib.check(folder).to_dict("records")
    if not json:
        for row in problems:
            print(f"{folder / row['file']}: {row['problem']}; {row['remedy']}.")
    return dict(data=str(folder), problems=problems if json else len(problems))


def rows_for(checkpoint: Path, data: Path | None) -> tuple:
    """Training and validation rows, of the model's own data or of others, which is said."""
    from unetlib.fetch.pairs import files_in, folders_in
    from unetlib.store.model_file import load_plain
    from unetlib.support.memory import fingerprint

    known = (load_plain(checkpoint) if checkpoint.is_file() else {}).get("info", {}).get("data")
    runs = [run.details for run in unetlib.find_runs() if run.details["data"] == known]
    own = [Path(one["data_folder"]) for one in runs if "data_folder" in one]
    there = [one for one in own if files_in(folders_in(one)[0])]
    if data is None:
        data, why = (there[-1], "which trained") if there else (folders.data_dir(), "unknown to")
        print(f"data: {data}, {why} {checkpoint}", file=sys.stderr)
    rows = unetlib.split_by_group(unetlib.find_samples(data))
    if known and not known.endswith(fingerprint(rows[1])):
        place = f"on other pictures, in {own[-1] if own else 'a folder unknown here'}"
        warnings.warn(f"{checkpoint}: was validated {place}, or they have changed.", stacklevel=2)
    return rows


def _imported(network: str | None):
    """What ``--network`` names, if anything; modules of the current folder are found."""
    if network is None:
        return None
    sys.path.append(os.getcwd())
    try:
        if callable(found := resolve_name(network)):
            return found
        raise ValueError("it is no class or function")
    except (ImportError, AttributeError, ValueError) as why:
        remedy = "give MODULE:NAME, for example my_networks:MyUNet"
        raise unetlib.ModelFileError(f"--network {network}: {why}; {remedy}.") from None
