"""What the documentation shows works: Python blocks run, command lines parse, links and the site hold.

The Python blocks of a page run in order, in one namespace, in an empty folder. A block that cannot run here is preceded by a
line ``<!-- not run: why -->``.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[1]
PAGES = sorted([PROJECT / "README.md", *PROJECT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)\n```", re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, code) of the blocks of a language that are not marked as not run."""
    text = "\n" + page.read_text()
    found = [m for m in _BLOCK.finditer(text) if m["language"] == language and "<!-- not run:" not in m["before"]]
    return [(text[: m.start("code")].count("\n"), m["code"]) for m in found]


def having(language: str) -> list:
    """The pages with blocks of a language, as test parameters."""
    return [pytest.param(page, id=str(page.relative_to(PROJECT))) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", having("python"))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # the networks of the examples are untrained: their weights may be any, but the same each time
    namespace = {"__name__": "documentation"}
    for line, code in blocks(page, "python"):
        try:
            exec(compile(code, f"{page.name}, line {line}", "exec"), namespace)
        except Exception as error:
            pytest.fail(f"{page.relative_to(PROJECT)}, block at line {line}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("page", having("bash"))
def test_command_lines_parse(page):
    import typer

    from trueward.cli import app

    command = typer.main.get_command(app)
    for line, code in blocks(page, "bash"):
        for text in code.replace("\\\n", " ").splitlines():
            words = shlex.split(text, comments=True)
            if words[:1] != ["trueward"]:
                continue
            try:
                with command.make_context("trueward", words[1:]) as context:
                    command.commands[words[1]].make_context(words[1], words[2:], parent=context)
            except Exception as error:
                pytest.fail(f"{page.relative_to(PROJECT)}, line {line}: {text!r}: {error}")


def test_make_targets_in_the_texts_exist():
    targets = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page in [*PAGES, PROJECT / "CONTRIBUTING.md"]:
        for _line, code in blocks(page, "bash"):
            named = re.findall(r"^make (\w+)", code, re.MULTILINE)
            assert set(named) <= targets, page


def test_the_site_builds_without_warnings(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    pytest.importorskip("mkdocs", reason='the documentation needs: pip install "trueward[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    # nothing is fetched when a reader opens it offline
    page = (tmp_path / "site" / "index.html").read_text()
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page) == []


def test_the_table_of_methods_in_the_readme_is_up_to_date():
    code = "import sys; sys.path.insert(0, 'docs'); import methods_table as m; t = m.README.read_text(); "
    code += "assert m.table() in t and m.renewed(t) == t, 'run: make figures'"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_page_of_the_documentation_is_in_the_navigation():
    navigation = (PROJECT / "mkdocs.yml").read_text()
    for page in PROJECT.glob("docs/**/*.md"):
        assert str(page.relative_to(PROJECT / "docs")) in navigation, page
