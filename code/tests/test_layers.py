"""The order of the layers: nothing imports from a layer above its own, and what needs no torch does not load it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "epsam"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("epsam", "errors", "shipped", "workspace"),
    ("runtime",),
    ("config",),
    ("results", "rounds", "slides", "models"),
    ("runs",),
    ("patches", "evaluation.metrics"),
    ("classifier",),
    ("cam",),
    ("prompts", "classifier.validation", "classifier.training"),  # the best epoch may be chosen by the maps
    ("sam",),
    ("segmenter",),
    ("pseudo_labels", "round_choice"),
    ("student",),
    ("self_test",),
    ("visualization",),
    ("evaluation", "inference"),
    ("report",),
    ("stages",),
    ("pipeline",),
    ("doctor", "demo"),
    ("options",),
    ("infer_command", "export_command"),
    ("api",),
    ("cli",),
    ("__main__", "torchrun"),
)
"""From the lowest to the highest. A module belongs to the longest of these names that is its own or its package's."""
SAME_LAYER = {("inference", "evaluation"), ("classifier.training", "classifier.validation")}
"""Imports between two names of one layer: the first may import the second."""
WITHOUT_TORCH = (
    *(
        "cli",
        "config",
        "demo",
        "doctor",
        "infer_command",
        "models",
        "patches",
        "results",
        "rounds",
        "runs",
        "slides",
        "workspace",
    ),
    *("runtime.files", "runtime.log", "runtime.memory", "runtime.records", "runtime.seeds", "runtime.workers"),
    *("evaluation.metrics", "stages.preprocess", "stages.report"),
)


def _modules() -> dict[str, Path]:
    """Every module without the leading `epsam.`; packages by their names."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "epsam"] = path
    return modules


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> tuple[int, str]:
    """Number of the layer of a module or of a name in it, and which of the layer's names it belongs to."""
    names = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in names:
            return names[name], name
    raise AssertionError(f"{module}: give it a place in LAYERS")


def test_nothing_imports_from_a_layer_above_its_own():
    wrong = []
    for module, path in _modules().items():
        number, name = layer_of(module)
        for imported in _imports(path) if module != "epsam" else ():  # which imports for type checkers alone
            if not imported.startswith("epsam."):
                continue
            inner = imported.removeprefix("epsam.")
            other, other_name = layer_of("epsam" if inner == "__version__" else inner)
            if other > number or (other == number and name != other_name and (name, other_name) not in SAME_LAYER):
                wrong.append(f"{module} ({name}) imports {inner} ({other_name})")
    assert not wrong


def test_every_layer_is_there():
    assert {name for layer in LAYERS for name in layer} <= _modules().keys()


def test_what_needs_no_torch_does_not_load_it():
    modules = [module for module in _modules() if module.startswith(WITHOUT_TORCH)]
    code = "import importlib, sys\nfor m in sys.argv[1:]:\n importlib.import_module('epsam.' + m)\n"
    code += " if 'torch' in sys.modules: sys.exit(m)"
    run = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert run.stderr == ""


def test_stages_load_no_package_that_takes_long_for_one_function():
    """SciPy's statistics take as long to load as NumPy, OpenCV and matplotlib together."""
    stages = ", ".join(f"epsam.{module}" for module in _modules() if module.startswith("stages."))
    code = f"import sys, {stages}; print(sorted({{'pandas', 'scipy.stats', 'sklearn'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_command_line_loads_no_reader_of_slides():
    """Each stage is a process of its own, one that is done already too."""
    code = "import sys, epsam.cli; print(sorted({'openslide', 'shapely', 'tifffile', 'torch'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
