"""The small trained things that a method ships so that its claim's quick scale need not train.

At the laptop scale an arm keeps what it trained with `save`; `noiseworks bench ship <method>` copies it from a
finished run into the package, where `load` finds it. Floating-point tensors are stored in half precision.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from noiseworks.bench.runner.discovery import select_claims
from noiseworks.bench.runner.session import DEFAULT_OUT
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "shipped"
KIND = "bench/shipped"
LARGEST_MEGABYTES = 1.5  # of everything that one method ships


def save(folder: Path, name: str, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> Path:
    """Store what an arm trained below a task's folder, in half precision.

    Args:
        folder: `Context.folder`.
        name: Name of the arm or model.
        config: JSON values that are needed to build the model and to say how it was trained.
        tensors: Name -> tensor of any shape; floating-point ones become float16.

    Returns:
        The artifact's folder.
    """
    halved = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    target = Path(folder) / FOLDER / name
    save_artifact(target, KIND, dict(config), halved)
    return target


def load(package: str, name: str) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Return config and tensors that a package ships; half precision becomes float32.

    Args:
        package: Import name of the method's package, such as `noiseworks.mdpo`.
        name: Name given to `save`.

    Raises:
        InputError: When the package ships nothing of this name.
    """
    return load_from(package_folder(package), name)


def load_from(folder: Path, name: str) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Return config and tensors of an artifact below a folder: a task's, or a package's.

    Raises:
        InputError: When there is none of this name.
    """
    import torch

    path = Path(folder) / FOLDER / name
    if not path.is_dir():
        known = ", ".join(sorted(one.name for one in path.parent.glob("*/"))) or "nothing"
        raise InputError(f"no shipped {name!r} in {folder}; there is {known}")
    config, tensors = load_artifact(path, KIND)
    return config, {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}


def package_folder(package: str) -> Path:
    """Return the folder of an installed package, which is not imported.

    Raises:
        InputError: When it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"no package {package} is installed")
    return Path(next(iter(spec.submodule_search_locations)))


def ship(
    method: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = DEFAULT_OUT,
    *,
    seed: int | None = None,
) -> dict[str, Any]:
    """Copy what a claim trained at the laptop scale into the method's package, for the quick scale.

    Args:
        method: The method.
        out: Output folder of a run at the laptop scale.
        seed: The seed whose models are shipped; by default the smallest that kept any.

    Returns:
        The copied names, where they lie now and their size.

    Raises:
        InputError: When the run kept nothing, or more than a method may ship.
    """
    package = installed_package(method)
    pattern = f"laptop-{'*' if seed is None else seed}-*/{FOLDER}"
    folders = sorted(
        (Path(out) / "tasks" / method).glob(pattern), key=lambda path: int(path.parent.name.split("-")[1])
    )
    kept = sorted(path for path in folders[0].iterdir() if path.is_dir()) if folders else []
    if not kept:
        raise InputError(f"{out} keeps nothing of {method} to ship; run its claim at the scale laptop first")
    size = sum(file.stat().st_size for path in kept for file in path.iterdir()) / 1e6
    if size > LARGEST_MEGABYTES:
        raise InputError(
            f"{size:.2f} MB of {method} are kept in {out}; a method ships at most {LARGEST_MEGABYTES} MB"
        )
    target = package_folder(package) / FOLDER
    for path in kept:
        save_artifact(target / path.name, KIND, *load_artifact(path, KIND))
    return {"shipped": [path.name for path in kept], "folder": str(target), "megabytes": round(size, 3)}


def installed_package(method: str) -> str:
    """Return the import name of an installed method's package.

    Raises:
        InputError: When its claim is not installed.
    """
    (source,) = select_claims([method])
    return source.values[0].partition(":")[0].rpartition(".")[0]
