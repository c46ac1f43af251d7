"""The package as a stranger meets it: names, versions, and what an import costs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trueward

PROJECT = Path(__file__).parents[1]
PACKAGE = Path(trueward.__file__).parent
HEAVY = ("torch", "diffusers", "transformers", "datasets", "gradio", "matplotlib", "scipy", "sklearn", "accelerate")
OPTIONAL = ("diffusers", "transformers", "datasets", "gradio", "matplotlib", "tensorboard", "pandas", "pyarrow")


def modules_after(code: str) -> set[str]:
    """The top-level modules loaded in a fresh interpreter that ran `code`."""
    code += "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_every_public_name_can_be_imported():
    for name in trueward.__all__:
        assert getattr(trueward, name) is not None, name
    assert set(trueward.__all__) <= set(dir(trueward))


def test_type_checkers_see_the_same_names_as_python():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"trueward.{module}" for name, module in trueward._HOME.items()}


def test_every_room_is_an_attribute():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli"}
    assert rooms <= set(trueward._ROOMS)


def test_an_unknown_name_is_an_attribute_error_with_the_closest_one():
    with pytest.raises(AttributeError, match="Did you mean 'DDIM'"):
        trueward.DDIMM  # noqa: B018
    assert not hasattr(trueward, "no_such_thing_at_all")


def test_functions_are_not_hidden_by_the_modules_of_the_same_name():
    code = "import trueward.methods, trueward.citations, trueward; assert len(trueward.methods()) == 20; trueward.citations()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_trueward_loads_no_heavy_library():
    assert modules_after("import trueward; trueward.methods(); dir(trueward)") & set(HEAVY) == set()


def test_using_the_core_loads_no_optional_library():
    code = "import trueward; trueward.sampler('ddim', steps=3).plan(trueward.VPLinear()); trueward.truth; trueward.networks"
    loaded = modules_after(code)
    assert "torch" in loaded
    assert loaded & set(OPTIONAL) == set()


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['trueward', '--help']\nfrom trueward.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert modules_after(code) & set(HEAVY) == set()


def test_the_version_is_the_same_everywhere():
    version = trueward.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\nversion: {version}\n" in (PROJECT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (PROJECT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_pinned_version():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints()}
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in wanted} - {"trueward"}
    assert names - pinned == set()


def test_pins_are_exact_and_without_gpu_builds():
    for line in constraints():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
        assert not line.lower().startswith(("nvidia", "torchvision", "triton", "cuda")), line


def constraints() -> list[str]:
    return [line for line in (PROJECT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
