"""Groups of options: one declaration is the type, the bounds, the help and the command-line option."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from cyclopts import App
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.core.options import Hardware, Options, Seed, Spread, Wholes, above, at_least, at_most, below


@dataclass(frozen=True)
class Sampling(Options):
    """How tokens are drawn.

    Attributes:
        temperature: Of the draws, <low> to high.
        steps: Calls of testbed:<name>.
        top_p: Mass of the nucleus.
        order: Which first.
        share: A share.
        lazy: Whether late.
        out: Where to.
        grid: Sizes.
    """

    temperature: Annotated[float, at_least(0)] = 1.0
    steps: Annotated[int, at_least(1)] = 4
    top_p: Annotated[float | None, above(0), at_most(1)] = None
    order: Literal["uniform", "confidence"] = "uniform"
    share: Annotated[float, below(1)] = 0.5
    lazy: bool = False
    out: Path | None = None
    grid: Annotated[Wholes, at_least(2)] = (4, 8)

    def check(self):
        if self.order == "confidence" and self.lazy:
            raise InputError("order 'confidence' cannot be lazy; leave one of them out")


@pytest.fixture
def typed(capsys):
    app = App(name="go", help_format="plaintext", result_action="return_value")

    @app.default
    def go(
        *, seed: Seed = 0, sampling: Spread[Sampling] = Sampling(), hardware: Spread[Hardware] = Hardware()
    ):
        """Draw.

        Args:
            seed: Of the draws.
            sampling: How.
            hardware: Where.
        """
        return {"seed": seed, "sampling": repr(sampling), "device": hardware.device}

    def type_words(*words):
        with pytest.raises(SystemExit) as stop:
            run(app, list(words))
        return stop.value.code, *capsys.readouterr()

    return type_words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature must be a number of at least 0, got -1"),
        ({"temperature": math.nan}, "temperature must be a number"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": None}, "steps must be a whole number"),
        ({"top_p": 0.0}, "top_p must be a number above 0 and of at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"share": 1}, "share must be a number below 1"),
        ({"order": "random"}, "order must be one of uniform, confidence, got 'random'"),
        ({"lazy": "no"}, "lazy must be true or false"),
        ({"order": "confidence", "lazy": True}, "cannot be lazy"),
        ({"grid": (4, 1)}, "grid must be a whole number of at least 2, got 1"),
        ({"grid": ()}, "one or more whole numbers"),
        ({"grid": 4}, "one or more whole numbers"),
    ],
)
def test_a_field_that_does_not_fit_its_annotation_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        Sampling(**options)


def test_the_edges_of_a_range_are_allowed():
    made = Sampling(temperature=0, steps=1, top_p=1, order="confidence", share=-5.0)
    assert (made.temperature, made.top_p, made.share) == (0, 1, -5.0)


def test_every_field_is_an_option_with_its_help(typed):
    status, printed, _ = typed("--help")
    assert status == 0
    text = " ".join(printed.replace("│", " ").split())
    assert "testbed:<name>." in text
    assert "<low> to high" in text
    for option in ("--temperature", "--top-p", "--order", "--no-lazy", "--device", "--seed"):
        assert option in text


def test_options_of_the_command_line_make_the_object(typed):
    status, printed, _ = typed(
        "--steps", "9", "--top-p", "0.5", "--lazy", "--device", "cpu", "--seed", "7", "--grid", "2, 3"
    )
    assert status == 0
    assert repr(Sampling(steps=9, top_p=0.5, lazy=True, grid=(2, 3))) in printed
    assert "seed: 7" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--steps", "2.5"], "'2.5'"),
        (["--steps", "²"], "whole number"),
        (["--steps", "٣"], "whole number"),
        (["--steps", "0"], "at least 1"),
        (["--temperature", "inf"], "temperature"),
        (["--order", "random"], "random"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**63)], "seed"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int8"], "int8"),
        (["--order", "confidence", "--lazy"], "cannot be lazy"),
        (["--grid", "2,b"], "2,b"),
        (["--grid", "2,"], "whole numbers"),
    ],
)
def test_bad_words_are_one_line_and_status_2(typed, words, part):
    status, printed, error = typed(*words)
    assert status == 2
    assert printed == ""
    assert len(error.strip().splitlines()) == 1
    assert part in error


def test_hardware_resolves_late():
    hardware = Hardware("cpu", "bfloat16")
    assert str(hardware.torch_device()) == "cpu"
    assert str(hardware.torch_dtype()) == "torch.bfloat16"
    assert Hardware().torch_dtype() is None
