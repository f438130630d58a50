"""Nothing imports what its pyproject does not list, layers only look downward, and start-up stays light."""

import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from closures import Import, brought, distributions_of, file_of, imports_of, loaded_by, normalised

# Modules of a method that only the bench loads: the claim, what measures it, what registers it for compose.
FOR_THE_BENCH = ("claim", "evidence", "composing")
# Which source files an optional extra counts for (besides files named after the extra itself).
EXTRA_FILES = {
    "bench": (*(f"*/{name}.py" for name in FOR_THE_BENCH), "*/claim_*.py", "*/*data.py"),
    "diffusers": ("*/core/interop.py", "*/kits/diffusers_hosts*"),
    "kernels": ("*/core/kernels/*",),
    "ray": ("*/bench/runner/*",),
    "testing": ("*/kits/testing.py",),
    "train": ("*/bench/testbeds/*",),
    "masked-lm": ("*/kits/masked_lm/*", "*/kits/policies/testing.py"),
    "policies": ("*/kits/policies/*",),
    "training": ("*/kits/training/*",),
    "image-tuning": ("*/kits/image_tuning/*",),
    "rl": ("*/kits/rl/*", "*/kits/policies/testing.py"),
    "lerobot": ("*/kits/policies/testing.py", "*/kits/policies/hosts/lerobot_dataset.py"),
    "backbones": ("*/kits/backbones/*",),
    "metaworld": ("*/testbeds/metaworld/*",),
    "tabletop": ("*/testbeds/tabletop/*",),
    "maze": ("*/testbeds/maze/*",),
}
# Declared for a library that looks it up at run time instead of importing it.
NEEDED_INDIRECTLY = {
    "ruff": "noiseworks-dev runs it as a program",
    "accelerate": "diffusers and transformers load weights through it",
    "tensorboard": "torch.utils.tensorboard writes through it",
    "transformers": "diffusers' text-conditional pipelines hold its models",
    "tokenizers": "transformers' fast tokenizers are built on it",
}
HOSTS = {
    "diffusers",
    "transformers",
    "peft",
    "lightning",
    "accelerate",
    "ray",
    "lerobot",
    "gymnasium",
    "stable_baselines3",
    "minari",
    "torchvision",
}


def requirement_name(requirement: str) -> str:
    return normalised(re.match(r"[A-Za-z0-9._-]+", requirement).group())


def allowed_distributions(member, file: Path, found: Import) -> set[str]:
    """Return what a file may import: itself, the dependencies, and the extras that count for this file.

    An annotation may name a type of any extra.
    """
    project = member.pyproject["project"]
    allowed = {member.name, *map(requirement_name, project["dependencies"])}
    for extra, requirements in project.get("optional-dependencies", {}).items():
        patterns = (*EXTRA_FILES.get(extra, ()), f"*/{extra}.py", f"*/{extra}/*")
        if found.for_types_only or any(fnmatch(file.as_posix(), pattern) for pattern in patterns):
            allowed |= set(map(requirement_name, requirements))
    return allowed


def test_imports_only_what_the_pyproject_lists(member):
    wrong = [
        f"{file.relative_to(member.folder)}:{found.line} imports {found.module}"
        for file in member.sources
        for found in imports_of(file)
        if (providers := distributions_of(found.module))
        and not providers & allowed_distributions(member, file, found)
    ]
    assert not wrong, "\n".join(wrong)


def extras_for(extras, file: Path) -> list[str]:
    """Return which of the extras count for a file."""
    return [
        extra
        for extra in extras
        if any(
            fnmatch(file.as_posix(), pattern)
            for pattern in (*EXTRA_FILES.get(extra, ()), f"*/{extra}.py", f"*/{extra}/*")
        )
    ]


@cache
def needs(module: str) -> frozenset[str]:
    """Return what importing a module loads, and of kits what their functions import as well, but for LeRobot.

    A kit asks for that with a sentence that names the extra.
    """
    kits = (one for one in loaded_by(module) if one.startswith("noiseworks.kits.") and file_of(one))
    lazy = {one.module for kit in kits for one in imports_of(file_of(kit)) if not one.for_types_only}
    return loaded_by(module) | {one for one in lazy if one.split(".")[0] not in ("noiseworks", "lerobot")}


def test_an_install_brings_what_its_imports_load(member):
    """Whatever a file asks for, and whatever that asks for: in the closure of the wheel and of the file's extras.

    A module of the package itself that only a function imports may count for an extra; it is looked at by itself.
    """
    wrong = []
    for file in member.sources:
        extras = extras_for(member.pyproject["project"].get("optional-dependencies", {}), file)
        there = brought(f"{member.name}[{','.join(extras)}]")
        for found in imports_of(file):
            own = found.module.startswith(tuple(member.modules))
            if not found.for_types_only and (found.at_module_level or not own):
                for module in set().union(*map(needs, found.loads)):
                    providers = distributions_of(module)
                    if providers and not providers & there:
                        wrong.append(f"{file.relative_to(member.folder)}:{found.line} loads {module}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_lists_only_what_it_imports(member):
    imported = set().union(
        *(distributions_of(found.module) for file in member.sources for found in imports_of(file))
    )
    unused = [
        name
        for name in map(requirement_name, member.pyproject["project"]["dependencies"])
        if name not in imported and name not in NEEDED_INDIRECTLY
    ]
    assert not unused, f"{member.name} lists {unused} and never imports them"


def layers_below(module: str) -> set[str]:
    """Return the second-level names under `noiseworks.` that a module may import."""
    room = module.split(".")[1]
    if room == "core":
        return {"core"}
    if room in ("kits", "bench"):
        return {"core", room, "kits"}
    return {"core", "kits", room} | ({"bench"} if module.split(".")[-1] in FOR_THE_BENCH else set())


def loaded_with_another(members) -> set[str]:
    """Return the modules that some other module imports when it is imported itself."""
    return {
        found.module
        for m in members
        for file in m.sources
        for found in imports_of(file)
        if found.at_module_level
    }


def test_layers_only_look_downward(member, members):
    """Two exceptions, both out of the way of a plain import.

    Code that trains a testbed's models uses `noiseworks.ldm`, and a method may load a testbed's data when the
    user names it.
    """
    always_loaded = loaded_with_another(members)
    wrong = []
    for file in member.sources:
        module = member.module_of(file)
        for found in imports_of(file):
            parts = found.module.split(".")
            if parts[0] != "noiseworks" or parts[1] in layers_below(module):
                continue
            lazy = not found.at_module_level  # or for types only
            trains_a_testbed = ".testbeds." in module and parts[1] == "ldm"
            loads_testbed_data = lazy and found.module.startswith("noiseworks.bench.testbeds")
            if not (trains_a_testbed and (lazy or module not in always_loaded)) and not loads_testbed_data:
                wrong.append(f"{module}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_core_imports_no_host_library_at_module_level(members):
    wrong = [
        f"{file}:{found.line} imports {found.module}"
        for member in members
        for file in member.sources
        if member.module_of(file).startswith("noiseworks.core")
        for found in imports_of(file)
        if found.at_module_level and found.module.split(".")[0] in HOSTS
    ]
    assert not wrong, "\n".join(wrong)


def test_packages_and_command_lines_import_without_torch(members, run):
    """`__init__.py` and `cli.py` of every member load neither torch nor a host library."""
    modules = {name for member in members for name in member.modules}
    modules |= {
        member.module_of(file) for member in members for file in member.sources if file.name == "cli.py"
    }
    heavy = sorted(HOSTS | {"torch", "triton", "matplotlib", "sklearn"})
    code = f"import sys, {', '.join(sorted(modules))}; print([n for n in {heavy} if n in sys.modules])"
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
