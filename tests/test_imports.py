"""Who may import whom: the code is parsed, never run, and held to the table of rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kinetics_jax", "pallas_kernels", "checkpoints_conversion")

# room: (level, the rooms it may import). `kinetics_jax.` is left out of the names.
ROOMS: dict[str, tuple[int, set[str]]] = {
    "pallas_kernels": (0, set()),
    "specs": (0, set()),
    "tasks": (0, set()),
    "accuracy": (0, set()),
    "cost": (1, {"specs"}),
    "traces": (1, {"specs"}),
    "attention": (1, {"specs", "pallas_kernels"}),
    "models": (2, {"specs", "attention"}),
    "sampling": (3, {"specs", "attention", "models"}),
    "training": (3, {"specs", "tasks", "models"}),
    "checkpoints_conversion": (3, {"specs", "models"}),
    "zoo": (3, {"specs", "models", "traces", "checkpoints_conversion"}),
    "collect": (4, {"specs", "tasks", "traces", "sampling"}),
    "scaling": (4, {"specs", "cost", "accuracy", "traces"}),
    "figures": (5, {"specs", "cost", "scaling"}),
}
ROOMS["cli"] = (6, set(ROOMS))

# A person can price and plot without a model installed in memory.
ANALYSIS = ("specs", "cost", "accuracy", "traces", "scaling", "figures")
FORBIDDEN_IN_ANALYSIS = ("flax", "orbax", "safetensors", "tokenizers", "jax.experimental.pallas")
# Libraries of the extras load in the function that needs them.
OPTIONAL = (
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "gguf",
    "jinja2",
    "math_verify",
    "reasoning_gym",
    "ray",
    "beartype",
    "pytest",
)


def room_of(module: str) -> str | None:
    """Return the room of a dotted module name, "" for `kinetics_jax` itself, None outside the house."""
    package, _, rest = module.partition(".")
    if package not in PACKAGES:
        return None
    return rest.partition(".")[0] if package == "kinetics_jax" else package


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, absolute module, imported name or None) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            if node.level:
                base = base[: len(base) - node.level + int(is_package)]
            target = ".".join([*base, node.module] if node.module else base) if node.level else node.module or ""
            for alias in node.names:
                yield node.lineno, target, alias.name


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return one sentence for every import in `source` that the table of rooms does not allow."""
    room = room_of(module)
    assert room is not None, module
    tree = ast.parse(source)
    module_level = {
        line
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line, _, _ in imports_of(ast.Module([node], []), module, is_package=is_package)
    }
    found = []
    for line, target, name in imports_of(tree, module, is_package=is_package):
        where = f"{module}:{line}"
        if target == "kinetics_jax" and name is not None and name != "__version__":
            target, name = f"kinetics_jax.{name}", None  # `from kinetics_jax import cost` imports the room
        other = room_of(target)
        whole = f"{target}.{name}" if name else target
        if other is None:
            if line in module_level and target.partition(".")[0] in OPTIONAL:
                found.append(f"{where} imports the optional {target} at module level; import it where it is used")
            if room in ANALYSIS and any(f"{whole}.".startswith(f"{bad}.") for bad in FORBIDDEN_IN_ANALYSIS):
                found.append(f"{where}: the analysis half must not import {whole}")
        elif other not in (room, ""):
            if other not in ROOMS:
                found.append(f"{where} imports {target}, which is no room")
            elif other not in allowed_for(module):
                found.append(f"{where}: {room or 'kinetics_jax'} may not import {other}")
            public = other if other in PACKAGES else f"kinetics_jax.{other}"
            if target != public or (name or "").startswith("_"):
                found.append(f"{where} reaches into {whole}; import what {public} exports")
    return found


def allowed_for(module: str) -> set[str]:
    if module == "kinetics_jax.__main__":
        return {"cli"}
    room = room_of(module)
    return ROOMS[room][1] if room else set()


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_follow_the_table_of_rooms(path: Path):
    module = module_of(path)
    room = room_of(module)
    assert room in ROOMS or module in ("kinetics_jax", "kinetics_jax.__main__"), f"{module} is in no room of the table"
    found = violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle_and_never_looks_up():
    for room, (level, allowed) in ROOMS.items():
        assert all(ROOMS[other][0] <= level for other in allowed), room
    settled: set[str] = set()
    while ready := {room for room, (_, allowed) in ROOMS.items() if room not in settled and allowed <= settled}:
        settled |= ready
    assert settled == set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kinetics_jax.cost._cost", "from kinetics_jax.models import Decoder"),
        ("kinetics_jax.cost._cost", "from kinetics_jax import models"),
        ("kinetics_jax.cost._cost", "from ..models import Decoder"),
        ("kinetics_jax.cost._cost", "from .. import models"),
        ("kinetics_jax.cost._cost", "def f():\n    import kinetics_jax.models"),
        ("kinetics_jax.cost._cost", "from kinetics_jax.specs._model import MODELS"),
        ("kinetics_jax.cost._cost", "from kinetics_jax.specs import _model"),
        ("kinetics_jax.cost._cost", "from ..specs._model import MODELS"),
        ("kinetics_jax.cost._cost", "import kinetics_jax.specs._model"),
        ("kinetics_jax.cost._cost", "import flax.nnx"),
        ("kinetics_jax.scaling._fit", "from flax import nnx"),
        ("kinetics_jax.figures._style", "from jax.experimental import pallas as pl"),
        ("kinetics_jax.traces._rows", "import pallas_kernels"),
        ("kinetics_jax.attention._decode", "from pallas_kernels._api import paged_decode"),
        ("kinetics_jax.sampling._generate", "from kinetics_jax.collect import run"),
        ("kinetics_jax.tasks._pathfind", "import transformers"),
        ("kinetics_jax.cli._demo", "from kinetics_jax.nowhere import thing"),
        ("kinetics_jax", "from kinetics_jax.specs import MODELS"),
        ("pallas_kernels._api", "from kinetics_jax.specs import BlockTopK"),
        ("checkpoints_conversion._load", "from kinetics_jax.attention import PagedCache"),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str):
    assert violations(source, module, is_package=module == "kinetics_jax"), source


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kinetics_jax.cost._cost", "from kinetics_jax.specs import ModelSpec"),
        ("kinetics_jax.cost._cost", "from kinetics_jax import specs"),
        ("kinetics_jax.cost._cost", "from ._kv import entries_read"),
        ("kinetics_jax.attention._decode", "from pallas_kernels import paged_decode"),
        ("kinetics_jax.models._decoder", "from flax import nnx"),
        ("kinetics_jax.tasks._pathfind", "def f():\n    import transformers"),
        ("kinetics_jax.cli._demo", "from kinetics_jax.figures import draw"),
        ("kinetics_jax.cli._demo", "from kinetics_jax import __version__"),
        ("kinetics_jax.__main__", "from kinetics_jax.cli import main"),
    ],
)
def test_allowed_imports_pass(module: str, source: str):
    assert violations(source, module) == []


def test_analysis_half_loads_no_model_library():
    """What the parser cannot see: a library that itself pulls in flax."""
    rooms = [room for room in ANALYSIS if (ROOT / "kinetics_jax" / room / "__init__.py").exists()]
    assert rooms, "no room of the analysis half was found"
    code = "import sys\n" + "\n".join(f"import kinetics_jax.{room}" for room in rooms)
    code += "\nprint(sorted({'flax', 'orbax', 'pallas_kernels', 'jax.experimental.pallas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
