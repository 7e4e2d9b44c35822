"""Who may import whom: registrations nothing, wm_env only them, agents wm_env, training both."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import wm_env

ROOT = Path(wm_env.__file__).parents[1]
MAY_IMPORT = {
    "registrations": set(),
    "wm_env": {"registrations"},
    "agents": {"wm_env"},
    "training": {"wm_env", "agents"},
}


def modules(package):
    """Module name -> path of every file of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, *, at_import_time=False):
    """Absolute names of what a file imports; relative imports are refused."""
    nodes = [ast.parse(path.read_text(), str(path))]
    names = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write `from {path.parent.name}.x import y`"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (at_import_time and (later or checking)):
            nodes += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package):
    allowed = MAY_IMPORT[package] | {package}
    for name, path in modules(package).items():
        used = {imported.split(".")[0] for imported in imports(path)} & set(MAY_IMPORT)
        assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


def test_registrations_import_nothing_of_the_project():
    for name, path in modules("registrations").items():
        used = {imported.split(".")[0] for imported in imports(path)} & set(MAY_IMPORT)
        assert not used, name


def test_nothing_in_the_product_imports_the_tests():
    for package in MAY_IMPORT:
        for name, path in modules(package).items():
            assert not any(used.split(".")[0] == "tests" for used in imports(path)), name


def test_modules_do_not_import_each_other_in_a_circle():
    known = {name: path for package in MAY_IMPORT for name, path in modules(package).items()}
    graph = {
        name: {used for used in imports(path, at_import_time=True) if used in known} - {name}
        for name, path in known.items()
    }
    finished = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for used in graph[name]:
                visit(used, [*trail, name])
            finished.add(name)

    for name in graph:
        visit(name, [])


def test_importing_wm_env_is_light():
    script = (
        "import sys, builtins, wm_env\n"
        "heavy = {'jax', 'equinox', 'gymnax', 'flax', 'matplotlib', 'pygame', 'Box2D'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    for name in wm_env.__all__:
        assert getattr(wm_env, name) is not None
        assert name in dir(wm_env)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'DreamBoatRacing'; it offers"):
        wm_env.DreamBoatRacing  # noqa: B018


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_module_is_a_drawer_for_odds_and_ends(package):
    drawers = {"utils", "common", "helpers", "misc"}
    assert not drawers & {name.split(".")[-1] for name in modules(package)}


def test_registered_entry_points_exist():
    import registrations

    for entry_point in (
        registrations.GYMNASIUM_ENTRY_POINT,
        registrations.GYMNASIUM_VECTOR_ENTRY_POINT,
        registrations.GYMNAX_ENTRY_POINT,
    ):
        module, name = entry_point.split(":")
        assert callable(getattr(importlib.import_module(module), name))
