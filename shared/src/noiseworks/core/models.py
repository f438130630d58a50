"""What a model's name means: a directory, `testbed:<name>` (a small trained model that ships), or a hub id."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from noiseworks.core.errors import InputError, ModelNotFoundError

TESTBED_PREFIX = "testbed:"
TESTBED_GROUP = "noiseworks.testbeds"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*$")


def testbed_models() -> dict[str, Path]:
    """Return the shipped testbed models by name, as directories in their hosts' own formats.

    A testbed registers a function under the entry-point group `noiseworks.testbeds` that maps names to paths.
    """
    found: dict[str, Path] = {}
    for entry in entry_points(group=TESTBED_GROUP):
        found.update(entry.load()())
    return found


def testbed(name: str, *, needs: str) -> ModuleType:
    """Return a testbed's module, which a method's extra [bench] brings.

    Args:
        name: Module below `noiseworks.bench.testbeds`, such as `tabletop`.
        needs: The method that asks for it, such as `rti-dp`.

    Raises:
        InputError: Naming the extra when the testbeds are not installed.
    """
    try:
        return import_module(f"noiseworks.bench.testbeds.{name}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the testbed {name} needs the extra [bench]: pip install 'noiseworks-{needs}[bench]' (lacks {error.name})"
        ) from error


def resolve_model(name: str | Path) -> str:
    """Return the local directory of a model, or the hub id itself when the user named one.

    Args:
        name: A directory, `testbed:<name>`, or a hub id such as `"org/model"`.

    Returns:
        A string for the host's `from_pretrained`.

    Raises:
        ModelNotFoundError: When the name is none of the three.
    """
    text = str(name)
    if text.startswith(TESTBED_PREFIX):
        models = testbed_models()
        short = text.removeprefix(TESTBED_PREFIX)
        if short not in models:
            known = (
                ", ".join(TESTBED_PREFIX + known for known in sorted(models))
                or "none; install noiseworks-bench"
            )
            raise ModelNotFoundError(f"unknown testbed model {text!r}; available: {known}")
        return str(models[short])
    try:
        folder, there = Path(text).is_dir(), Path(text).exists()
    except (OSError, ValueError):  # a name that no file system takes
        folder, there = False, True
    if text and folder:
        return text
    if _HUB_ID.match(text) and not there:
        return text
    raise ModelNotFoundError(f"no model at {text!r}: name a directory, a hub id (org/name) or testbed:<name>")


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Keep the loading bars of diffusers and transformers, where imported, out of the standard error.

    A refusal while a model is loaded is then one line.
    """
    imported = [sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    shown = [logging for logging in imported if logging is not None and logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()
