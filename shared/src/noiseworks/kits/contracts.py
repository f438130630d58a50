"""What a method package promises, as data: `packages/<slug>/tests/contract.py` holds one `CONTRACT`.

The tests of the workspace hold every package to its contract in the same way: lines that work leave what they say and
nothing else, lines that are refused are one sentence with nothing written, attached hosts come back bit for bit,
artifacts round-trip and cut ones are refused, resumed training equals uninterrupted training. A contract imports
nothing heavy itself; its functions import what they need.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """Something learned that a folder holds.

    Attributes:
        save: Writes a small one to a path that does not exist yet.
        load: Reads it back and returns what can be compared: numbers, texts, tensors, and mappings or lists of those.
    """

    save: Callable[[Path], object]
    load: Callable[[Path], Any]


@dataclass(frozen=True)
class Resume:
    """Training that can be stopped and gone on with.

    Attributes:
        train: `train(folder, stop_after)` trains with new objects until `stop_after` steps (None: to the end), in the
            folder of an earlier call where there is one, and returns the final state in the forms of `Artifact.load`.
        stop_after: A step between two checkpoints' steps or on one.
    """

    train: Callable[[Path, int | None], Any]
    stop_after: int


@dataclass(frozen=True)
class Contract:
    """What the workspace's tests check of one package.

    Attributes:
        good: Command lines without the command's name that work in seconds, every verb at least once, and the files
            (patterns below the working folder) that each leaves; `()` for none. {name} stands for a path of `files`.
        bad: Command lines that are refused, and a word of the sentence that says why.
        files: Makes what the lines name: `files(folder)` returns name -> path, or -> any other text.
        attach: Name -> a function that checks one kind of host with `kits.testing.check_attach`.
        artifacts: Name -> what is saved and loaded.
        resume: Name -> a trainer.
    """

    good: Mapping[str, Sequence[str]]
    bad: Sequence[tuple[str, str]]
    files: Callable[[Path], Mapping[str, Path | str]] = lambda folder: {}
    attach: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    resume: Mapping[str, Resume] = field(default_factory=dict)
