"""Lightning without its banner, its advertisements and its multi-page refusals."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from noiseworks.core.errors import InputError

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's notes and its guesses about what might be slow from the terminal; its errors stay."""
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=".*eval mode.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what Lightning refuses while a trainer is set up into one sentence.

    Raises:
        InputError: With the first line of Lightning's message.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        with quiet():
            yield
    except InputError:
        raise
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"Lightning refuses these settings: {reason}") from error
