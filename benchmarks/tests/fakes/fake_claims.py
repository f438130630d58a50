"""Claims that the runner's tests install for a moment: one for each way in which a claim can end."""

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from noiseworks.bench.claims import Arm, Ceiling, Claim, Data, Measurement, Scale, at_most, no_worse
from noiseworks.bench.compose import Composable, Host

ARMS = (Arm("plain", "Plain sampling", "baseline"), Arm("ours", "Fewer calls", "method"))
TARGETS = (
    at_most("calls", "ours", "plain", ratio=0.75),
    no_worse("score", "ours", "plain", by=0.02),
)


def trace(line):
    """Append a line that a test can count to the file named by FAKES_TRACE."""
    if "FAKES_TRACE" in os.environ:
        with open(os.environ["FAKES_TRACE"], "a") as file:
            file.write(f"{line}\n")


def prepare(seed, context):
    trace(f"prepare {seed}")
    return np.random.default_rng(seed).normal(size=context.settings["prompts"]), seed


def steady(arm, shared, context):
    """One arm on what `prepare` drew for all of them."""
    noise, seed = shared
    trace(f"{arm} {seed}")
    context.progress(1, 2, "prompts")
    score = 0.8 + 0.05 * noise
    calls = [20.0 if arm == "plain" else 15.0] * len(score)
    (context.folder / f"{arm}.png").write_bytes(PNG)
    return Measurement(
        {"calls": calls, "score": score + (0.001 if arm == "ours" else 0.0)},
        series={"score by step": ([1, 2, 3], [0.1, 0.5, 0.8 if arm == "plain" else 0.9])},
        images={"first prompt": context.folder / f"{arm}.png"},
        notes=["measured on made-up numbers"],
    )


def crash(arm, shared, context):
    if shared[1] == 501:
        raise ValueError("the network exploded")
    return steady(arm, shared, context)


def nan(arm, shared, context):
    return Measurement({"calls": 15.0, "score": [0.5, float("nan")]})


def slow(arm, shared, context):
    time.sleep(600)


def gated(arm, shared, context):
    """Seed 501 waits for a file, and says which process waits."""
    gate = Path(os.environ["FAKES_GATE"])
    if shared[1] == 501:
        waiting = gate.with_suffix(f".{os.getpid()}")
        waiting.write_text(str(os.getpid()))
        waiting.replace(gate.with_suffix(".pid"))  # whole at any moment that somebody reads it
        while not gate.exists():
            time.sleep(0.05)
    return steady(arm, shared, context)


def given(arm, shared, context):
    """Shows the user's file."""
    found = steady(arm, shared, context)
    return replace(found, notes=[Path(context.data["problems"]).read_text()])


def claim(method, run, *, time_limit=120.0, **fields):
    scale = Scale((500, 501), time_limit, {"prompts": 20})
    laptop = replace(scale, seeds=(1000, 1001))
    return Claim(
        method=method,
        paper="A made-up paper (2025), arXiv:0000.00000",
        statement="The same score with 25 % fewer network calls.",
        testbed="made-up numbers",
        arms=ARMS,
        targets=TARGETS,
        scales={"smoke": replace(scale, seeds=(500,)), "quick": scale, "laptop": laptop},
        prepare=prepare,
        run=run,
        units="prompt",
        columns={"calls": "network calls", "score": "oracle score"},
        **fields,
    )


STEADY = claim("fake-steady", steady)
CRASH = claim("fake-crash", crash)
NAN = claim("fake-nan", nan)
SLOW = claim("fake-slow", slow, time_limit=1.0)
GATED = claim("fake-gated", gated)
WITHOUT_ROOM = Ceiling("plain", "score", 0.5, "the baseline already scores {:.2f}")
VOID = claim("fake-void", steady, preconditions=(WITHOUT_ROOM,))
GIVEN = claim("fake-given", given, data=(Data("problems", "a text file such as GSM8K's", ("quick",)),))


def measure(host, seed, context):
    calls = host["calls"] * np.ones(context.settings["prompts"])
    return Measurement({"calls": calls, "score": 0.8 - host["loss"] + 0.0 * calls})


HOST = Host(
    name="a dictionary",
    testbed="made-up numbers",
    load=lambda context: {"calls": 20.0, "loss": 0.0},
    measure=measure,
    cost="calls",
    quality="score",
    tolerance=0.05,
    units="prompt",
    scales={
        "smoke": Scale((500,), 120.0, {"prompts": 4}),
        "quick": Scale((500, 501), 120.0, {"prompts": 4}),
    },
    columns={"calls": "network calls", "score": "oracle score"},
)


def composable(method, share, loss=0.0):
    @contextmanager
    def attach(host):
        before = dict(host)
        host["calls"] *= share
        host["loss"] += loss
        try:
            yield
        finally:
            host.update(before)

    return Composable(method, HOST, attach)


HALF = composable("half", 0.5)
THIRD = composable("third", 1 / 3, loss=0.01)
OTHER = Composable("other", replace(HOST, name="a list"), HALF.attach)

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080200000090775"
    "3de0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
