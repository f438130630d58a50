"""Types a package's good lines with one thing wrong, in this process, and counts how each is taken.

First a table: a path that leads nowhere, a folder without files and a file of zeros in the place of each path that a
good line reads; all of these are to be refused. Then by chance: a value out of any range, a path that is none, a
broken file of every kind, an option said twice, without its value, or unknown; such a call is taken well when it is
refused in one line with nothing written, or accepted.
"""

import contextlib
import io
import json
import pickle
import random
import shlex
import shutil
import signal
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.options import Options, Seed, Spread, at_least
from noiseworks.dev.contracts import app_of, contract_of, typed, words_of, written
from noiseworks.dev.workspace import check_slug, root_of
from noiseworks.kits.contracts import Contract

VALUES = ("", " ", "nan", "inf", "-inf", "-1", "0", "1e400", "2.5", "²", "٣", "1,,2", "x" * 300, "None", "[]")
VALUES += (
    str(2**31),
    str(2**64),
    "true",
    "..",
    ".",
    "/",
    "a/../../b",
    "gone.txt",
    "testbed:",
    "testbed:nothing",
)
VALUES += ("org/nothing", "a\0b", "<b>", "{}", "--", "é" * 200)
BROKEN = {
    "empty.txt": b"",
    "latin.txt": "é".encode("latin-1"),
    "zeros.txt": bytes(64),
    "list.json": b"[]",
    "nan.json": b'{"a": NaN}',
    "cut.json": b'{"a": ',
    "deep.json": b"[" * 5000,
    "cut.safetensors": b"\xff\xff\x00\x00\x00\x00\x00\x00{",
    "pickle.pt": pickle.dumps({"a": 1}),
    "empty.npz": b"",
    "picture.png": b"\x89PNG\r\n\x1a\n",
}


@dataclass(frozen=True)
class Effort(Options):
    """How much is typed.

    Attributes:
        calls: Number of calls by chance, after the table of paths.
        seconds: Seconds after which a call counts as slow.
    """

    calls: Annotated[int, at_least(0)] = 100
    seconds: Annotated[int, at_least(1)] = 25


@dataclass(frozen=True)
class Fuzzed:
    """How the calls were taken.

    Attributes:
        counts: Outcome -> number of calls: "refused" (one line, status 2, nothing written), "accepted", "trace",
            "long" (more than one line, or something on stdout), "left" (refused, but something was written), "slow",
            "failed" (another status), "nonsense" (accepted with a path that leads to nothing).
        bad: Outcome other than refused, accepted and slow -> the calls, with what was printed.
        read: The calls that were accepted or slow, to be read: is one of them nonsense?
    """

    counts: dict[str, int]
    bad: dict[str, list[str]]
    read: list[str]

    @property
    def failed(self) -> bool:
        """Whether a call was taken badly."""
        return bool(self.bad)


class Slow(BaseException):
    """A call took too long; no handler of a command may swallow it."""


def fuzz(slug: str, *, effort: Spread[Effort] = Effort(), seed: Seed = 0) -> Fuzzed:
    """Type a package's good lines with one thing wrong.

    Args:
        slug: The folder's name below `packages/`.
        effort: How much is typed.
        seed: Of the choices; the same seed types the same lines.

    Returns:
        How they were taken. A call that was taken badly ends with status 1.

    Raises:
        InputError: When there is no such package, or it has no contract.
    """
    check_slug(slug)
    package = root_of(Path.cwd()) / "packages" / slug
    contract = contract_of(package)
    choose, outcomes, calls = random.Random(seed), Counter(), {}
    with tempfile.TemporaryDirectory() as name:
        desk = Path(name)
        (desk / "files").mkdir()
        files = contract.files(desk / "files")
        broken = list(break_things(desk / "broken"))
        lines = [words_of(line, files) for line in contract.good]
        typed_lines = [(words, False) for words in misled(contract, files, desk / "broken")]
        typed_lines += [(spoiled(choose.choice(lines), choose, broken), True) for _ in range(effort.calls)]
        for words, may_be_accepted in typed_lines:
            (desk / "work").mkdir()
            before = written(desk)
            outcome, text = taken(app_of(slug), words, desk / "work", effort.seconds)
            if outcome == "refused" and written(desk) != before:
                outcome = "left"
            if outcome == "accepted" and not may_be_accepted:
                outcome = "nonsense"
            outcomes[outcome] += 1
            calls.setdefault(outcome, []).append(f"{shlex.join(words)}\n    {text}".replace(name, ""))
            shutil.rmtree(desk / "work")
    read = calls.pop("accepted", []) + calls.pop("slow", [])
    calls.pop("refused", None)
    return Fuzzed(dict(outcomes), calls, [call.split("\n")[0] for call in read])


def break_things(folder: Path) -> Iterator[str]:
    """Make broken files and folders, and yield their paths."""
    folder.mkdir()
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
        yield str(folder / name)
    for name, config in (
        ("listed", []),
        ("other", {"kind": "another/kind", "format_version": 1}),
        ("deep", {}),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").write_bytes(BROKEN["cut.safetensors"])
        yield str(folder / name)
    with zipfile.ZipFile(folder / "pickled.npz", "w") as file:
        file.writestr("a.npy", pickle.dumps([1]))
    yield str(folder / "pickled.npz")


def misled(contract: Contract, files: Mapping[str, Path | str], broken: Path) -> Iterator[list[str]]:
    """Yield each path that a verb's good lines read with nothing, an empty folder and a file of zeros in its place."""
    (broken / "hollow").mkdir()
    seen = set()
    for line in contract.good:
        words = shlex.split(line)
        for place, word in enumerate(words):
            name = word.removeprefix("{").removesuffix("}")
            if word != "{" + name + "}" or not isinstance(files.get(name), Path):
                continue
            read = words[0], words[place - 1] if words[place - 1].startswith("--") else str(place)
            if read not in seen:
                seen.add(read)
                for wrong in ("gone" + files[name].suffix, "hollow", "zeros.txt"):
                    spoilt = [*words[:place], str(broken / wrong), *words[place + 1 :]]
                    yield words_of(shlex.join(spoilt).replace("'{", "{").replace("}'", "}"), files)


def spoiled(words: list[str], choose: random.Random, broken: list[str]) -> list[str]:
    """Return a line with one thing wrong."""
    verb, rest = words[0], words[1:]
    places = [place for place, word in enumerate(rest) if word.startswith("--")]
    kind = choose.choice(("value", "value", "value", "broken", "broken", "twice", "unknown", "bare"))
    if kind == "unknown" or not places:
        return [verb, *rest, choose.choice(("--no-such-option", "--out-", "-q", "stray")), "1"]
    place = choose.choice(places)
    if kind == "twice":
        return [verb, *rest, *rest[place : place + 2]]
    if kind == "bare":
        return [verb, *rest[: place + 1], *rest[place + 2 :]]
    value = choose.choice(VALUES) if kind == "value" else choose.choice(broken)
    return [verb, *rest[:place], f"{rest[place]}={value}", *rest[place + 2 :]]


def taken(app: Any, words: list[str], folder: Path, seconds: int) -> tuple[str, str]:
    """Return how a call was taken, and what it printed or raised, on one line."""

    def stop(*signal_and_frame: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            done = typed(app, words, folder)
    except Slow:
        return "slow", f"more than {seconds} s"
    except BaseException as error:  # the trace that a user would see, of whatever kind
        return "trace", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    text = " ".join(done.stderr.split())[:300]
    if done.returncode == 0:
        return "accepted", text
    if done.returncode != 2:
        return "failed", f"status {done.returncode}: {text}"
    return ("refused" if len(done.stderr.strip().splitlines()) == 1 and not done.stdout else "long"), text
