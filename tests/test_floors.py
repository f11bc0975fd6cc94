"""The floors: imports go down only, areas stay apart, and what must answer at once does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "hauberk"
AREAS = ("robustness", "integrity", "assets", "privacy", "federated", "guard", "trust")
FLOOR = {
    "core": 0, "io": 1, **dict.fromkeys(AREAS, 2), "methods": 4, "checks": 3, "report": 3,
    "study": 5, "assessment": 5, "planned": 6, "cli": 7,
}
ALLOWED_BETWEEN_AREAS = {
    ("federated", "privacy"), ("federated", "integrity"), ("guard", "robustness"), ("guard", "assets"), ("guard", "trust"),
}
TORCH_FREE = (
    "core/errors.py", "core/access.py", "core/finding.py", "core/card.py", "core/stats.py", "core/roc.py", "core/files.py",
    "core/progress.py", "report",
)


def _imports(path: Path) -> list[str]:
    """Every module a file imports, inside functions too; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "hauberk" else ""


def test_imports_go_down_only() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        assert here in FLOOR, f"{here} has no floor: name one in this test"
        for module in _imports(path):
            there = _room(module)
            if not there or there == here or there not in FLOOR:
                continue
            if here in AREAS and there in AREAS:
                if (here, there) not in ALLOWED_BETWEEN_AREAS:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {module}: areas do not know each other")
            elif FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {module}: that is not below")
    # A finding's notebook view reaches up on purpose, when a notebook asks for it.
    allowed = {"core/finding.py imports hauberk.report.notebook", "core/finding.py imports hauberk.report.notebook.finding_html"}
    assert [line for line in wrong if line.split(":")[0] not in allowed] == []


def test_what_renders_and_answers_at_once_never_imports_torch() -> None:
    for entry in TORCH_FREE:
        place = SOURCE / entry
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            assert not [name for name in _imports(path) if name.split(".")[0] == "torch"], path


def test_help_does_not_load_torch() -> None:
    code = "import sys, hauberk, hauberk.cli, hauberk.report.report; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_long_and_the_median_is_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}
    ordered = sorted(length for path, length in lengths.items() if path.name != "__init__.py")
    assert ordered[len(ordered) // 2] <= 150


def test_public_functions_have_few_parameters() -> None:
    many = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            free = [name for name in names if name not in ("self", "cls")]
            decorators = {ast.unparse(one).split("(")[0] for one in node.decorator_list}
            # Commands of the command line and attacks have options; their positions are four, and options at most eight.
            options = len(node.args.kwonlyargs)
            optioned = decorators & {"attack", "universal", "semantic", "detection_attack"}
            limit = len(free) - options + 8 if optioned else 8
            if not node.name.startswith("_") and len(free) > limit and "cli" not in path.parts:
                many.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.name} has {len(free)}")
    allowed = {"kinds.py", "context.py"}
    assert [line for line in many if line.split(":")[0].split("/")[-1] not in allowed] == []
