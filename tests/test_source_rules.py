"""What holds for every line of source: privacy, length, and the calls a library must not make."""

import ast

GLOBAL_SEEDING = {"torch.manual_seed", "numpy.random.seed", "np.random.seed", "random.seed"}
BANNED_CALLS = {"print", "eval", "exec", "pickle.load", "pickle.loads"}


def calls_outside_fork_rng(node: ast.AST):
    """Yield the call nodes that are not inside a `with torch.random.fork_rng(...)` block."""
    if isinstance(node, ast.With) and any(
        "fork_rng" in ast.unparse(item.context_expr) for item in node.items
    ):
        return
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from calls_outside_fork_rng(child)


def test_libraries_neither_print_nor_evaluate_text(members):
    wrong = [
        f"{file}:{node.lineno} calls {ast.unparse(node.func)}"
        for member in members
        for file in member.sources
        if file.name != "cli.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def test_libraries_leave_the_global_random_state_alone(members):
    """Global seeds are set only inside `torch.random.fork_rng`, which puts the state back."""
    wrong = [
        f"{file}:{node.lineno} calls {ast.unparse(node.func)}"
        for member in members
        for file in member.sources
        for node in calls_outside_fork_rng(ast.parse(file.read_text()))
        if ast.unparse(node.func) in GLOBAL_SEEDING
    ]
    assert not wrong, "\n".join(wrong)


def test_no_error_is_swallowed_and_no_pickle_is_loaded(members):
    wrong = []
    for member in members:
        for file in member.sources:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ExceptHandler) and (
                    node.type is None or ast.unparse(node.type) == "Exception"
                ):
                    wrong.append(f"{file}:{node.lineno} catches everything")
                text = ast.unparse(node) if isinstance(node, ast.Call) else ""
                if text.startswith("torch.load(") and "weights_only=True" not in text:
                    wrong.append(f"{file}:{node.lineno} loads a pickle")
    assert not wrong, "\n".join(wrong)


def test_private_names_stay_inside_their_package(members):
    wrong = []
    for member in members:
        for file in member.sources:
            own = ".".join(member.module_of(file).split(".")[:2])
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("noiseworks."):
                    private = [alias.name for alias in node.names if alias.name.startswith("_")]
                    if not (node.module + ".").startswith(own + ".") and (private or "._" in node.module):
                        wrong.append(f"{file}:{node.lineno} imports {private} from {node.module}")
    assert not wrong, "\n".join(wrong)


def test_python_files_stay_readable_in_one_sitting(members):
    too_long = {
        str(file): count
        for member in members
        for file in [*member.sources, *(member.folder / "tests").glob("*.py")]
        if (count := len(file.read_text().splitlines())) > 500
    }
    assert not too_long
