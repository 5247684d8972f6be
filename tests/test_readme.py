"""README's guide, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

README = Path(__file__).parent.parent / "README.md"


def test_the_guide_to_own_pictures_and_ideas_runs_as_it_stands(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        mask = np.zeros((48, 40), np.uint8)
        mask[rng.integers(20) :, rng.integers(20) :] = 1
        colours = np.where(mask[..., None] == 1, (40, 160, 60), (200, 190, 180))
        photo = (colours + rng.normal(0, 9, colours.shape)).clip(0, 255).astype(np.uint8)
        for folder, array in (("photos", photo), ("labels", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"leaf{number}.png")
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL))
    code = code.replace("Recipe(", "Recipe(batch_size=4, ").replace("(96, 64)", "(24, 16)")
    code += "\nprint(len(compare_runs()), len(own.history), (own.folder / 'best.pth').exists())"
    environment = os.environ | dict(UNETLIB_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1")
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-3:] == ["5", "2", "True"]
    assert len(list((tmp_path / "models-own").glob("[!.]*"))) == 6
