"""What an install line brings, by uv.lock, and what importing a module loads, by its source: nothing is installed."""

import ast
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from members import ROOT


def normalised(name: str) -> str:
    """Return a distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def locked() -> dict[str, list[dict]]:
    """Return the packages of uv.lock by name; one that is locked for several platforms has several entries."""
    found = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        found.setdefault(package["name"], []).append(package)
    return found


@cache
def brought(*lines: str) -> frozenset[str]:
    """Return the distributions that `pip install LINE ...` brings, for lines like `name[extra,other]`."""
    waiting, seen = [], set()
    for line in lines:
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([^\]]*)\])?", line).groups()
        waiting += [
            (normalised(name), extra)
            for extra in ("", *filter(None, map(str.strip, (extras or "").split(","))))
        ]
    while waiting:
        name, extra = one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for package in locked()[name]:
            wanted = (
                package.get("optional-dependencies", {}).get(extra, [])
                if extra
                else package.get("dependencies", [])
            )
            for found in wanted:
                waiting += [(found["name"], extra) for extra in ("", *found.get("extra", []))]
    return frozenset(name for name, _ in seen)


@cache
def providers() -> dict[str, list[str]]:
    """Return the distributions that provide each top-level module; reading them takes a while."""
    return dict(packages_distributions())


@cache
def distributions_of(module: str) -> set[str]:
    """Return the distributions that provide a module; empty for the standard library."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names:
        return set()
    if parts[0] == "noiseworks":
        return {"noiseworks-core" if parts[1] in ("core", "kits") else f"noiseworks-{normalised(parts[1])}"}
    return {normalised(name) for name in providers().get(parts[0], [parts[0]])}


@cache
def file_of(module: str) -> Path | None:
    """Return the source file of a module of the workspace, if there is one."""
    below = Path(*module.split("."))
    for folder in ("shared", "benchmarks", "tools", f"packages/{normalised(module.split('.')[1])}"):
        for file in (below.with_suffix(".py"), below / "__init__.py"):
            if (ROOT / folder / "src" / file).exists():
                return ROOT / folder / "src" / file
    return None


@cache
def lazy_names(package: str) -> dict[str, str]:
    """Return the modules that a package's public names come from, by the stub that its `__init__` is made of."""
    stub = file_of(package).with_suffix(".pyi")
    if not stub.exists():
        return {}
    return {
        alias.asname or alias.name: f"{package}.{node.module}"
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def modules_named(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the modules that an import statement loads, lazy public names followed to where they stand."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.module.split(".")[0] != "noiseworks":
        return [node.module]
    found = [] if node.module == "noiseworks" else [node.module]
    for alias in node.names:
        below = f"{node.module}.{alias.name}"
        lazy = lazy_names(node.module).get(alias.name) if found else None
        if lazy or file_of(below):
            found.append(lazy or below)
    return found


@dataclass(frozen=True)
class Import:
    """An import statement: the module, whether it runs when the file is imported, where it stands, what it loads."""

    module: str
    at_module_level: bool
    for_types_only: bool
    line: int
    loads: tuple[str, ...]


class Imports(ast.NodeVisitor):
    """Collects the imports of one file."""

    def __init__(self):
        self.found: list[Import] = []
        self.depth = 0
        self.types_only = False

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node):
        self.visit_FunctionDef(node)

    def visit_If(self, node):
        if "TYPE_CHECKING" in ast.unparse(node.test):
            self.types_only = True
            for child in node.body:
                self.visit(child)
            self.types_only = False
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            self._add(alias.name, node, (alias.name,))

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"relative import in line {node.lineno}"
        if node.module == "noiseworks":
            for alias in node.names:
                self._add(f"noiseworks.{alias.name}", node, (f"noiseworks.{alias.name}",))
        else:
            self._add(node.module, node, modules_named(node))

    def visit_Call(self, node):
        called = ast.unparse(node.func)
        if called.endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
            self._add(node.args[0].value, node, (node.args[0].value,))
        self.generic_visit(node)

    def _add(self, module, node, loads):
        at_module_level = self.depth == 0 and not self.types_only
        self.found.append(Import(module, at_module_level, self.types_only, node.lineno, tuple(loads)))


@cache
def imports_of(file: Path) -> tuple[Import, ...]:
    visitor = Imports()
    visitor.visit(ast.parse(file.read_text()))
    return tuple(visitor.found)


@cache
def direct(module: str) -> frozenset[str]:
    """Return the modules that one of the workspace imports when it is imported, with the packages above it."""
    parts = module.split(".")
    above = {".".join(parts[:i]) for i in range(2, len(parts))}
    found = (one for one in imports_of(file_of(module)) if one.at_module_level)
    return frozenset(above).union(*(one.loads for one in found))


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Return what importing a module loads: modules of the workspace, and top-level ones of other distributions."""
    waiting, seen = [module], set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            if one.startswith("noiseworks.") and file_of(one):
                waiting += direct(one)
    return frozenset(
        one if one.startswith("noiseworks.") else one.split(".")[0] for one in seen - {"noiseworks"}
    )
