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


def direct_requirements():
    extras = PROJECT["optional-dependencies"]
    listed = PROJECT["dependencies"] + extras["dev"] + extras["browser"] + extras["site"]
    return [Requirement(line) for line in listed]


def test_conda_installs_this_project_and_names_no_package_itself():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[dev]"]}


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
