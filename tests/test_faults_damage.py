"""Whatever a power cut or a bad disk leaves of a file: noticed, or without effect.

Every file that unetlib writes is cut off, overwritten, zeroed and shifted at random places. Using
it must then raise an error of one sentence, or give exactly what it gave before. (The text files of
a run have no checksum: they open, or the error names them.)
"""

import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from unetlib import (
    FILES,
    CarvanaDataset,
    ModelFileError,
    RunError,
    cache_dir,
    decode_once,
    fit,
    load_model,
    load_predictor,
    load_run,
    to_tensor,
)
from unetlib.deploy.manifest import MANIFEST

PAGE = 4096


accidents = st.lists(
    st.tuples(
        st.sampled_from(["cut", "byte", "bit", "zeros", "page", "lost", "inserted"]),
        st.floats(0, 1, exclude_max=True),  # where
        st.binary(min_size=1, max_size=20),  # what comes instead
    ),
    min_size=1,
    max_size=3,
)


@contextmanager
def put_back(path):
    """Gives a file's content, for a test that spoils it, and restores it at the end."""
    whole = path.read_bytes()
    try:
        yield whole
    finally:
        path.write_bytes(whole)


def spoil(path, happened) -> None:
    """Overwrite a file by what accidents leave of it."""
    whole = path.read_bytes()
    content = bytearray(whole)
    for kind, where, other in happened:
        place = int(where * len(content))
        if kind == "cut":
            del content[place:]
        elif kind == "byte":
            content[place : place + 1] = other[:1]
        elif kind == "bit" and content:
            content[place] ^= 1 << other[0] % 8
        elif kind == "zeros":
            content[place:] = bytes(len(content) - place)
        elif kind == "page":
            start = place // PAGE * PAGE
            content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))
        elif kind == "lost":
            del content[place : place + 16 * len(other)]
        elif kind == "inserted":
            content[place:place] = other
    assume(content != whole)
    path.write_bytes(content)


def weights(model: torch.nn.Module) -> dict:
    return {name: value.cpu().numpy().tobytes() for name, value in model.state_dict().items()}


def all_of(folder) -> tuple:
    """All that a run is used for."""
    run = load_run(folder)
    return (
        run.recipe,
        run.details,
        run.history.to_csv(),
        weights(run.model("best")),
        weights(run.model("last")),
    )


def says_so(error: Exception, *named: str) -> None:
    assert any(name in str(error) for name in named)
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def run_copy(trained, tmp_path_factory):
    """A finished run's folder to spoil, and what it gives when it is whole."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(trained.folder, folder)
    return folder, all_of(folder)


@pytest.mark.fault(
    "weights of a run cut off, zeroed or changed anywhere",
    "named; nothing of it is used; retrain=True trains again",
)
@pytest.mark.parametrize("name", ["last.pth", "best.pth"])
@given(happened=accidents)
def test_damaged_weights_of_a_run_are_never_used(run_copy, name, happened):
    folder, before = run_copy
    with put_back(folder / name):
        spoil(folder / name, happened)
        try:
            assert all_of(folder) == before
        except ModelFileError as error:
            says_so(error, str(folder))


@pytest.mark.fault(
    "a text file of a run cut off, zeroed or changed anywhere",
    "it opens, or is named; retrain=True trains again",
)
@pytest.mark.parametrize("name", ["history.csv", "recipe.json", "run.json"])
@given(happened=accidents)
def test_a_damaged_text_file_of_a_run_opens_or_is_named(run_copy, name, happened):
    folder, _ = run_copy
    with put_back(folder / name):
        spoil(folder / name, happened)
        try:
            all_of(folder)
        except (RunError, ModelFileError) as error:
            says_so(error, str(folder))


@pytest.mark.fault("recipe.json or run.json missing", "named as missing, with the remedy")
@pytest.mark.parametrize("name", ["recipe.json", "run.json"])
def test_a_run_that_lacks_a_file_says_which(run_copy, tmp_path, name):
    shutil.copytree(run_copy[0], tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(RunError, match=rf"{name}.*retrain=True"):
        load_run(tmp_path / "run")


@pytest.mark.fault(
    "training goes on from a run with a weight changed on the disk",
    "refused before the first step, with the remedy",
)
@pytest.mark.parametrize("name", ["last.pth", "best.pth"])
def test_training_does_not_go_on_from_changed_weights(trained, tables, tmp_path, name):
    """One byte in the middle of the weights: PyTorch itself loads such a file."""

    def stop(run):
        raise KeyboardInterrupt

    run = fit(replace(trained.recipe, epochs=2), *tables, on_epoch=stop)
    content = bytearray((run.folder / name).read_bytes())
    content[len(content) // 2] ^= 64
    (run.folder / name).write_bytes(content)
    torch.load(run.folder / name, weights_only=True)
    with pytest.raises(RunError, match=rf"{run.folder.name}.*retrain=True"):
        fit(run.recipe, *tables)
    assert fit(run.recipe, *tables, retrain=True).finished


# ------------------------------------------------------------------------------------ the cache


@pytest.mark.fault("a decoded image in the cache cut off, zeroed or changed", "decoded again")
@given(happened=accidents)
def test_a_damaged_cache_is_filled_anew(tables, tmp_path_factory, happened):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETLIB_HOME", str(tmp_path_factory.getbasetemp() / "damaged cache"))
        decoded = decode_once(tables[1], 32)
        path = min(cache_dir().rglob("*.bin"))
        whole = path.read_bytes()
        spoil(path, happened)
        assert np.array_equal(decode_once(tables[1], 32), decoded)
        assert path.read_bytes() == whole


# ----------------------------------------------------------------------------------- the models


@pytest.fixture(scope="module")
def models(exported, tables, tmp_path_factory):
    """A folder of exported models to spoil, images, and each model's logits of them."""
    folder = tmp_path_factory.mktemp("models") / "models"
    shutil.copytree(exported[0], folder)
    images = to_tensor(CarvanaDataset(tables[1], 32).images[:1]).numpy()
    logits = {name: load_predictor(folder / name, "cpu").logits(images) for name in FILES.values()}
    return folder, images, logits


@pytest.mark.fault(
    "an exported model cut off, zeroed or changed anywhere",
    "refused by its checksum, and named",
)
@pytest.mark.parametrize("name", FILES.values())
@given(happened=accidents)
def test_a_damaged_model_is_never_used(models, name, happened):
    folder, images, logits = models
    with put_back(folder / name):
        spoil(folder / name, happened)
        try:
            assert np.array_equal(load_predictor(folder / name, "cpu").logits(images), logits[name])
        except ModelFileError as error:
            says_so(error, str(folder / name))


@pytest.mark.fault(
    "one weight of an exported model changed on the disk",
    "named as changed or damaged since it was exported",
)
@pytest.mark.parametrize("name", FILES.values())
def test_one_changed_byte_of_a_model_is_noticed(models, name):
    path = models[0] / name
    with put_back(path) as whole:
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=name):
            load_predictor(path, "cpu")


@pytest.mark.fault(
    "the table of contents of a .pth file damaged", "refused in one sentence that names the file"
)
@pytest.mark.parametrize("name", [FILES["pytorch"], FILES["torchscript"]])
def test_a_zip_archive_with_a_broken_table_of_contents_is_refused(models, name):
    path = models[0] / name
    with put_back(path) as whole:
        path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x01\x03"))
        with pytest.raises(ModelFileError, match=name):
            load_predictor(path, "cpu")


@pytest.mark.fault(
    "a .pth or .pt2 file that claims to be one of several disks",
    "refused in one sentence that names the file",
)
@pytest.mark.parametrize("name", [FILES["pytorch"], FILES["torchscript"], FILES["exported"]])
def test_an_archive_of_several_disks_is_refused(models, name):
    """Found by fuzzing: `zipfile.is_zipfile` itself raises an error then."""
    path = models[0] / name
    with put_back(path) as whole:
        locator = whole.rindex(b"PK\x06\x07")
        path.write_bytes(whole[: locator + 16] + b"\x02" + whole[locator + 17 :])
        with pytest.raises(ModelFileError, match=name):
            load_predictor(path, "cpu")


@pytest.mark.fault(
    "a weight marked as a folder in a .pth file's table of contents",
    "refused; PyTorch would take what happens to lie in memory for the weight",
)
def test_a_weight_that_claims_to_be_a_folder_is_refused(trained, tmp_path):
    """Found by fuzzing; no checksum of the archive covers this bit."""
    content = bytearray(trained.checkpoint.read_bytes())
    entry = content.rindex(b"archive/data/0") - 46  # of the table of contents, where its row begins
    assert content[entry : entry + 4] == b"PK\x01\x02" and content[entry + 38] == 0
    content[entry + 38] = 0x10
    (tmp_path / "marked.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"marked\.pth"):
        load_model(tmp_path / "marked.pth")


@pytest.mark.fault(
    "manifest.json cut off, zeroed or changed anywhere",
    "a program is refused; weights and graphs are used only if they are whole",
)
@given(happened=accidents, name=st.sampled_from(sorted(FILES.values())))
def test_a_damaged_manifest_vouches_for_nothing(models, name, happened):
    folder, images, logits = models
    with put_back(folder / MANIFEST):
        spoil(folder / MANIFEST, happened)
        try:
            assert np.array_equal(load_predictor(folder / name, "cpu").logits(images), logits[name])
        except ModelFileError as error:
            says_so(error, str(folder))
