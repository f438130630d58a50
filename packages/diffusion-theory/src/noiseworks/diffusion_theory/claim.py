"""The claim: the survey's statements hold by rules fixed in advance, and break once their premises are taken away.

Each experiment is a unit. `stated` runs it as the statement has it; `control` runs the same measurement with the
premise gone (a start that is too early, labels that are shuffled, naive gradients ...), which the rule has to refuse.
"""

from typing import Any

from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, at_most

BROKEN = {"holds": 0.0, "not resolved at this size": 0.5, "violates": 1.0}


def prepare(seed: int, context: Context) -> int:
    """Return the seed, which is all that the arms share."""
    return seed


def run(arm: str, seed: int, context: Context) -> Measurement:
    """Run all experiments of one arm."""
    from noiseworks.diffusion_theory.experiments import run as experiment
    from noiseworks.diffusion_theory.options import SIZES

    broken, notes = [], []
    for index, name in enumerate(context.settings["experiments"]):
        context.progress(index, len(context.settings["experiments"]), name)
        report = experiment(name, SIZES[context.settings["size"]], seed, control=arm == "control")
        broken.append(BROKEN[report.verdict])
        notes.append(f"{name} {report.verdict} ({report.excess:.2g} of what its rule allows)")
    return Measurement(
        {"broken": broken}, notes=(f"Seed {seed}: {'; '.join(notes)}.",) if arm == "stated" else ()
    )


def sizes(size: str, *experiments: str) -> dict[str, Any]:
    """Return the settings of a scale."""
    return {"size": size, "experiments": experiments}


ALL = ("E1", "E2a", "E2b", "E3", "E4", "E5", "E6", "E7")
CLAIM = Claim(
    method="diffusion-theory",
    paper="An Overview of Diffusion Models: Applications, Guided Generation, Statistical Rates and Optimization "
    "(arXiv 2404.07771)",
    statement="The survey's statements on rates, guidance and optimisation hold in closed form, each by its own rule.",
    testbed="none",
    arms=(
        Arm("control", "premise taken away", "baseline"),
        Arm("stated", "as stated", "method"),
    ),
    targets=(at_most("broken", "stated", "control", difference=-0.8),),
    scales={
        "smoke": Scale((500,), 120, sizes("smoke", "E1", "E3", "E5")),
        "quick": Scale((500,), 240, sizes("smoke", "E1", "E3", "E4", "E5")),
        "laptop": Scale((1000, 1001, 1002), 1200, sizes("quick", *ALL)),
        "full": Scale((1000, 1001, 1002), 72_000, sizes("paper", *ALL, "E2c")),
    },
    prepare=prepare,
    run=run,
    units="experiment",
    columns={"broken": "rules broken"},
)
