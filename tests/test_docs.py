"""Pages and notebooks say what is so: tests and functions they name exist, snippets run, notebooks are stripped."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics_jax import cost, specs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cost_model.md"
ELLIPSIS = "…"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def data_of(picture: Path) -> tuple[list[str], list[float]]:
    """Return the words and the numbers in the CSV beside a picture."""
    with picture.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    are_numbers = [re.fullmatch(r"-?\d[\d.]*(e[-+]?\d+)?", cell) is not None for cell in cells]
    words = [cell for cell, is_number in zip(cells, are_numbers, strict=True) if not is_number]
    return words, [float(cell) for cell, is_number in zip(cells, are_numbers, strict=True) if is_number]


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 25
    for path, name in named:
        assert name in functions_of(ROOT / "tests" / path), f"{path}::{name}"


def test_every_function_of_the_room_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    for name in vars(cost):
        if callable(getattr(cost, name)) and name[0].islower():
            assert f"`{name}`" in text, name
    for name in re.findall(r"`([A-Z]\w+)`", text):
        assert hasattr(cost, name) or hasattr(specs, name) or name in {*specs.HARDWARE, "ValueError"}, name


def test_every_picture_of_the_page_is_drawn_by_it(tmp_path: Path):
    text = PAGE.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(images/([\w.]+)\)", text)
    assert len(pictures) >= 3
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    code = "\n".join(snippets)
    # A process of its own: drawing does not need the checks of shapes that the suite switches on.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in pictures:
        drawn, shown = tmp_path / "docs" / "images" / name, PAGE.parent / "images" / name
        words, numbers = data_of(drawn)
        assert data_of(shown)[0] == words, f"{name} is out of date: run the page's snippet"
        assert data_of(shown)[1] == pytest.approx(numbers, rel=1e-9), f"{name} is out of date: run the page's snippet"
        assert shown.read_bytes().startswith(b"\x89PNG")


def messages_of(path: Path) -> set[str]:
    """Return the texts in a file, each value that is put into one as an ellipsis."""
    return {
        "".join(str(part.value) if isinstance(part, ast.Constant) else ELLIPSIS for part in parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (parts := node.values if isinstance(node, ast.JoinedStr) else [node] if is_text(node) else [])
    }


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_every_refusal_on_the_page_is_one_that_the_code_speaks():
    files = [file for room in ("checkpoints_conversion", "kinetics_jax") for file in (ROOT / room).rglob("*.py")]
    spoken = set[str]().union(*map(messages_of, files))
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = page.partition("## What is refused")[2].partition("\n## ")[0]
    said = re.findall(r"^\| (?!\*\*).+? \| `(.+)` \|$", table, flags=re.MULTILINE)
    assert len(said) > 45
    assert len(said) == len(set(said))
    assert [text for text in said if not any(text in message for message in spoken)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_every_section_ends_with_a_takeaway(path: Path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            code = "".join(cell["source"])
            assert not re.search(r"^\s*(from|import) .*\b_\w", code, flags=re.MULTILINE), "imports something private"
    sections = [index for index, cell in enumerate(notebook["cells"]) if "".join(cell["source"]).startswith("## ")]
    assert sections
    for end in [index - 1 for index in sections[1:]] + [len(notebook["cells"]) - 1]:
        last = "".join(notebook["cells"][end]["source"])
        assert last.startswith("**Takeaway.**"), last
        assert re.search(r"\d", last), last
