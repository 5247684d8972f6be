"""tools/course.py: running notebooks and writing them back."""

import os

import course
import nbformat
import pytest
import tidying
from nbformat.v4 import new_code_cell, new_notebook
from tqdm import tqdm


def write_notebook(folder, *sources):
    path = folder / "notebooks" / "01_toy.ipynb"
    path.parent.mkdir()
    cells = [new_code_cell(one, execution_count=i) for i, one in enumerate(sources, start=1)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bars_are_stored_finished_and_metadata_is_dropped(in_tmp_path):
    path = write_notebook(
        in_tmp_path,
        "from tqdm.auto import tqdm\n"
        "for _ in tqdm(range(3), 'kept'): pass\n"
        "for _ in tqdm(range(3), 'gone', leave=False): pass",
        "from tqdm import tqdm\n"
        "for _ in tqdm(range(3), 'outer'):\n"
        "    for _ in tqdm(range(2), 'inner', leave=False): pass\n"
        "print('after')",
    )
    assert course.run([path], in_place=True) == 0
    notebook = nbformat.read(path, as_version=4)
    first, second = ([output.text for output in cell.outputs] for cell in notebook.cells)
    assert len(first) == 1 and first[0].startswith("kept: 100%|██████████| 3/3 [")
    assert len(second) == 2 and second[0].startswith("outer: 100%|") and second[1] == "after\n"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == tidying.LANGUAGE
    assert all(cell.metadata == {} for cell in notebook.cells)


def test_what_widgets_show_is_not_sent_back_to_the_kernel(in_tmp_path):
    """nbclient's own way of it made cells with widgets slow, and some wait for ever."""
    path = write_notebook(
        in_tmp_path,
        "from ipywidgets import interact, Output\n"
        "interact(lambda x: print('shown'), x=(0, 5))\n"
        "output = Output()\n"
        "with output:\n    print('shown, too')",
        "print(output.outputs)",
    )
    notebook, problem = course.execute(path, tqdm(disable=True))
    assert problem is None
    assert notebook.cells[0].outputs == []
    assert notebook.cells[1].outputs[0].text == "()\n"


def test_a_failing_notebook_is_named_and_left_alone(in_tmp_path, capsys):
    path = write_notebook(in_tmp_path, "1", "raise ValueError('too\\nbad')", "3")
    before = path.read_bytes()
    assert course.run([path], in_place=True) == 1
    assert path.read_bytes() == before
    error = capsys.readouterr().err
    assert f"{os.path.join('notebooks', '01_toy.ipynb')}, cell [2]: bad" in error


def test_a_cell_that_hangs_ends_and_is_named(in_tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNETLIB_PROFILE", "ci")
    monkeypatch.setitem(course.LONGEST, "ci", 1)
    path = write_notebook(in_tmp_path, "1", "import time\ntime.sleep(600)", "3")
    before = path.read_bytes()
    assert course.run([path], in_place=True) == 1
    assert path.read_bytes() == before
    assert f"{os.path.join('notebooks', '01_toy.ipynb')}, cell [2]: " in capsys.readouterr().err


def test_the_results_name_the_runs_of_this_data_and_the_exported_files(
    trained, monkeypatch, capsys
):
    monkeypatch.setenv("UNETLIB_HOME", str(trained.folder.parent.parent))
    (trained.folder.parent.parent / "models").mkdir(exist_ok=True)
    (trained.folder.parent.parent / "models" / "unet_model.pth").write_bytes(bytes(2_000_000))
    course.print_results()
    shown = capsys.readouterr().out
    assert f"{trained.best_dice:.4f}" in shown and str(trained.folder) in shown
    assert "2.0 MB" in shown and "unet_model.pth" in shown
