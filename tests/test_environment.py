"""pyproject.toml is the one list of dependencies; the files beside it follow from it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = [
    Requirement(line)
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
}
# Of what the course needs, what Colab's image of 2026-08-19 has, with Python 3.13
# (https://github.com/googlecolab/backend-info); the rest is installed into it.
COLAB = """
accelerate 1.14.0, filelock 3.32.3, ipykernel 6.17.1, ipython 7.34.0, ipywidgets 7.7.1,
kagglehub 1.0.2, matplotlib 3.10.0, numpy 2.1.3, pandas 2.2.3, pillow 11.3.0, psutil 5.9.5,
requests 2.32.4, torch 2.11.0+cu128, torchvision 0.26.0+cu128, tqdm 4.67.3
"""


def direct_requirements():
    extras = PROJECT["optional-dependencies"]
    listed = PROJECT["dependencies"] + extras["lab"] + extras["dev"]
    listed += extras["browser"] + extras["site"]
    return [Requirement(line) for line in listed]


def test_conda_installs_this_project_and_names_no_package_itself():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[dev,lab]"]}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_each_dependency_has_one_pin_within_its_bounds(system, python):
    environment = SYSTEMS[system] | {"python_version": python, "python_full_version": f"{python}.5"}
    for requirement in direct_requirements():
        name = canonicalize_name(requirement.name)
        pins = [
            pin
            for pin in PINS
            if canonicalize_name(pin.name) == name
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(pins) == 1, f"{name}: run `make lock`"
        (version,) = pins[0].specifier
        assert requirement.specifier.contains(version.version), f"{name}: run `make lock`"


def test_every_dependency_has_a_lower_bound():
    for requirement in direct_requirements():
        assert [bound.operator for bound in requirement.specifier] == [">="], str(requirement)


def test_colab_keeps_all_that_it_has():
    bounds = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    installed = dict(one.split() for one in COLAB.split(","))
    changed = [name for name, version in installed.items() if version not in bounds[name]]
    assert changed == []
    assert set(bounds) - set(installed) == {"onnx", "onnxruntime", "onnxscript", "tyro"}


def test_constraints_name_no_package_index():
    text = (REPOSITORY / "constraints.txt").read_text()
    assert not re.search(r"https?://|--|@ ", text)


def test_every_import_of_the_library_is_declared():
    """A package that only comes along with another one would vanish when that one drops it."""
    imported = set()
    for path in (REPOSITORY / "unetlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    lists = [PROJECT["dependencies"], PROJECT["optional-dependencies"]["openvino"]]
    declared = {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}
    packages = {"PIL": "pillow"}
    third_party = imported - set(sys.stdlib_module_names) - {"unetlib"}
    assert {canonicalize_name(packages.get(name, name)) for name in third_party} <= declared
