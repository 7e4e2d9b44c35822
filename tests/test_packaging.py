"""What installs: bounds, contents of the repository, and versions that agree."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wm_env

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
OUR_PACKAGES = {"wm_env", "registrations", "agents", "training"}
EXTRAS = [Requirement(line) for line in sum(PROJECT["optional-dependencies"].values(), [])]


def _committed_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def _imported_distributions(package: str) -> set[str]:
    """The distributions whose modules a package imports, anywhere in its files."""
    modules = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    foreign = modules - OUR_PACKAGES - sys.stdlib_module_names
    # Those that may not be installed here are told; PIL is of pillow.
    told = {"upath": ["universal-pathlib"], "sbx": ["sbx-rl"]}
    owners = {**told, **packages_distributions()}
    return {canonicalize_name(name) for module in foreign for name in owners.get(module, [module])}


def test_versions_of_the_package_and_the_project_agree():
    assert wm_env.__version__ == PROJECT["version"]


@pytest.mark.parametrize("requirement", [*CORE, *EXTRAS], ids=str)
def test_every_requirement_has_a_lower_and_an_upper_bound(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert {">=", "<"} <= operators


def test_the_supported_ranges_are_the_promised_ones():
    promised = {
        "jax": "<0.12,>=0.6",
        "gymnasium": "<1.4,>=1.1",
        "gymnax": "<1.1,>=1.0.1",
        "evosax": "<0.4,>=0.3.2",
    }
    declared = {requirement.name: str(requirement.specifier) for requirement in CORE}
    assert {name: declared[name] for name in promised} == promised
    assert PROJECT["requires-python"].startswith(">=3.11")


@pytest.mark.parametrize("package", sorted(OUR_PACKAGES))
def test_every_imported_distribution_is_declared(package):
    declared = {canonicalize_name(requirement.name) for requirement in [*CORE, *EXTRAS]}
    by_others = {"pygame", "pygame-ce", "h5py"}  # by extras of Gymnasium and Minari
    assert _imported_distributions(package) <= declared | by_others


def test_no_lock_file_is_committed():
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "pylock.toml"}
    assert not [path for path in _committed_files() if path.name in locks]


def test_no_package_index_is_named():
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|index-url|find-links", re.IGNORECASE)
    texts = {".md", ".py", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".sh", ""}
    naming = [
        path
        for path in _committed_files()
        if path.suffix in texts and path != Path(__file__) and hosts.search(path.read_text())
    ]
    assert not naming


def test_the_readme_names_both_commands():
    readme = (ROOT / "README.md").read_text()
    for command in (
        "pip install uv && uv run python -m agents demo",
        "pip install uv && uv run pytest",
    ):
        assert command in readme
