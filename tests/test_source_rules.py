"""What holds for every line of source: privacy, length, and the calls a library must not make."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GLOBAL_SEEDING = {"torch.manual_seed", "numpy.random.seed", "np.random.seed", "random.seed"}
BANNED_CALLS = {"print", "eval", "exec", "pickle.load", "pickle.loads"}


@dataclass
class Facts:
    """What the rules look at, in all sources: (where, what)."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    unforked: list[tuple[str, str]] = field(default_factory=list)
    catches: list[tuple[str, str]] = field(default_factory=list)
    private: list[tuple[str, str]] = field(default_factory=list)


def name_of(node: ast.expr | None) -> str:
    """Return `a.b.c` for names and attributes, and nothing for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    below = name_of(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{below}.{node.attr}" if below else ""


def gather(node: ast.AST, file: Path, own: str, facts: Facts, forked: bool = False) -> None:
    """Collect what stands below a node; `forked` below `with torch.random.fork_rng(...)`."""
    where = f"{file}:{getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Call):
        name = name_of(node.func)
        safe = any(one.arg == "weights_only" and ast.unparse(one.value) == "True" for one in node.keywords)
        facts.calls.append((where, "a pickle" if name == "torch.load" and not safe else name))
        if not forked:
            facts.unforked.append((where, name))
    elif isinstance(node, ast.ExceptHandler):
        facts.catches.append((where, name_of(node.type) if node.type else "everything"))
    elif isinstance(node, ast.ImportFrom) and node.module.startswith("noiseworks."):
        private = [alias.name for alias in node.names if alias.name.startswith("_")]
        if not (node.module + ".").startswith(own + ".") and (private or "._" in node.module):
            facts.private.append((where, f"{private} from {node.module}"))
    elif isinstance(node, ast.With):
        forked |= any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
    for child in ast.iter_child_nodes(node):
        gather(child, file, own, facts, forked)


@pytest.fixture(scope="module")
def facts(members):
    """What stands in the sources of all members, each read once."""
    found = Facts()
    for member in members:
        for file in member.sources:
            own = ".".join(member.module_of(file).split(".")[:2])
            gather(ast.parse(file.read_text()), file, own, found)
    assert len(found.calls) > 1000
    return found


def chosen(pairs, names, suffix=""):
    """Return the pairs of one of the names as lines."""
    return "\n".join(
        f"{where} {name}" for where, name in pairs if name in names and not (suffix and suffix in where)
    )


def test_libraries_neither_print_nor_evaluate_text(facts):
    assert not chosen(facts.calls, BANNED_CALLS, "/cli.py:")


def test_libraries_leave_the_global_random_state_alone(facts):
    """Global seeds are set only inside `torch.random.fork_rng`, which puts the state back."""
    assert not chosen(facts.unforked, GLOBAL_SEEDING)


def test_no_error_is_swallowed_and_no_pickle_is_loaded(facts):
    assert not chosen(facts.catches, {"everything", "Exception"})
    assert not chosen(facts.calls, {"a pickle"})


def test_private_names_stay_inside_their_package(facts):
    assert not facts.private


def test_python_files_stay_readable_in_one_sitting(members):
    too_long = {
        str(file): count
        for member in members
        for file in [*member.sources, *(member.folder / "tests").glob("*.py")]
        if (count := len(file.read_text().splitlines())) > 500
    }
    assert not too_long
