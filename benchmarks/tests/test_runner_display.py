"""What words a scale allows, which target decided, how long the rest takes, and what fits on a narrow terminal."""

import io
import re
from xml.etree import ElementTree

import pytest
from noiseworks.bench.claims import Target
from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.display import Display, decided_by, headline, passed_text, time_left
from noiseworks.bench.runner.forest import forest, share_of_promise
from noiseworks.bench.runner.plots import Axis, standalone_curve
from noiseworks.bench.runner.tasks import Outcome, Task
from noiseworks.bench.runner.verdicts import deciding_target
from rich.console import Console


def record(
    estimate=0.7, threshold=0.75, verdict="holds", kind="ratio", better="lower", guard=False, name="calls"
):
    low, high = estimate - 0.02, estimate + 0.02
    target = Target(name, "m", "a", "b", kind, threshold, better, guard=guard)
    return vars(target) | {
        "estimate": estimate,
        "interval": [low, high],
        "observations": 9,
        "verdict": verdict,
    }


def claim(*targets, verdict="holds", **fields):
    return {
        "method": "a",
        "status": "judged",
        "verdict": verdict,
        "void_reason": None,
        "targets": list(targets),
        **fields,
    }


@pytest.mark.parametrize(
    ("verdicts", "guards", "decided"),
    [
        (("holds", "holds"), (False, True), 0),
        (("partly", "worse"), (False, True), 0),
        (("holds", "partly", "worse"), (False, True, True), 2),
        (("holds", "worse", "no effect"), (False, False, False), 1),
    ],
)
def test_the_target_that_decided_is_named(verdicts, guards, decided):
    targets = [Target(str(n), "m", "a", "b", "ratio", 1, "lower", guard=g) for n, g in enumerate(guards)]
    assert deciding_target(targets, verdicts) == decided


def test_the_decisive_target_stands_in_the_overview():
    found = claim(record(), record(name="score", verdict="worse", guard=True), verdict="worse")
    assert decided_by(found)["name"] == "score"
    assert passed_text(found) == "1 of 2; score: worse"
    assert passed_text(claim(record(), verdict="void", void_reason="no room")) == "no room"


def test_headlines_say_only_what_the_scale_can():
    claims = [claim(record()), claim(record(0.8), verdict="partly"), claim(record(1.2), verdict="worse")]
    words = {
        scale: headline({"scale": scale, "claims": claims}) for scale in ("smoke", "quick", "tune", "laptop")
    }
    assert words["smoke"] == "3 of 3 claims ran"
    assert words["quick"] == "2 of 3 effects in the promised direction, 1 at the promised size"
    assert words["tune"].endswith("nothing is judged")
    assert words["laptop"] == "3 claims: 1 holds, 1 partly, 1 worse"


def test_the_rest_takes_as_long_as_its_share():
    assert time_left(60, 2, 6) == "2:00"
    assert time_left(60, 0, 6) == ""
    assert time_left(60, 6, 6) == ""


def test_times_are_whole_on_a_narrow_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    task = Task(Source("streaming-dp", ("m:C",), "1"), 1, "quick", {}, 500, None, "cpu", 9.0)
    with Display(console) as display:
        display.expect(9)
        display.started(task)
        display.progressed(task, 500, 1000, "the arm with a long label: and what it does at the moment")
        display._bars.refresh()
    shown = [line for line in console.file.getvalue().splitlines() if "streaming-dp seed 500" in line]
    assert "50%" in shown[-1]
    assert "0:00:0" in shown[-1]
    assert "…" in shown[-1]
    assert "all tasks" in console.file.getvalue()
    assert re.search(r"0 of 9 done, about \d+:\d\d left", display._bars.tasks[0].fields["text"])
    display.ended(Outcome(task, None, None, "x", 1.0))
    assert display._done == 1


@pytest.mark.parametrize(
    ("target", "share"),
    [
        (record(0.25, 0.5), 2.0),
        (record(1.0, 0.5), 0.0),
        (record(0.02, 0.04, kind="difference", better="higher"), 0.5),
        (record(0.03, 0.0, kind="difference", better="higher"), 1.0),
        (record(0.03, 0.0, kind="difference", better="lower"), -1.0),
    ],
)
def test_effects_are_drawn_in_units_of_the_promise(target, share):
    assert share_of_promise(target, target["estimate"]) == pytest.approx(share)


def test_forest_has_a_row_a_method():
    drawn = forest({"Images": [claim(record(), method="x&y"), claim(record(0.01, 0.9), method="far")]})
    assert drawn.count('class="bold"') == 2
    assert "x&amp;y" in drawn
    assert "→" in drawn, "what lies outside is pointed to"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.992, 0.9995), (-3, 12_000), (5, 5), (0, 0)])
def test_ticks_are_few_and_round_and_inside(low, high):
    axis = Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(0 <= axis.place(tick) <= 100 for tick in ticks)


def test_a_curve_that_stands_alone_is_an_svg_file_that_names_every_colour_it_uses():
    claim = {
        "arms": [{"name": "few", "label": "fewer <steps>"}, {"name": "all", "label": "all steps"}],
        "measurements": {
            "few": [{"series": {"score": ([20, 30], [0.8, 0.9])}}],
            "all": [{"series": {"score": ([40], [0.9])}}],
        },
    }
    drawing = standalone_curve(claim, "score")
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"fewer <steps>", "all steps"} <= {node.text for node in root.iter() if node.tag.endswith("text")}
    assert sum(node.tag.endswith("polyline") for node in root.iter()) == 1
    used, named = set(re.findall(r"var\((--[\w-]+)\)", drawing)), set(re.findall(r"(--[\w-]+):", drawing))
    assert used
    assert used <= named
