"""The claim: a blend is nearer to the second tensor than the first tensor is."""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_most

if TYPE_CHECKING:
    from torch import Tensor


def prepare(seed: int, context: Context) -> "tuple[Tensor, Tensor]":
    """Draw the tensors of a seed, (B, 8) each."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, context.settings["rows"], 8, generator=generator)
    return first, second


def run(arm: str, tensors: "tuple[Tensor, Tensor]", context: Context) -> Measurement:
    """Measure one arm: the distance of each row to the second tensor."""
    from noiseworks.black_scholes.blending import blend, distance

    first, second = tensors
    made = blend(first, second, 0.5) if arm == "blend" else first
    return Measurement({"distance": distance(made, second).tolist()})


CLAIM = Claim(
    method="black-scholes",
    paper="Black-Scholes-Inspired Concept Blending (arXiv 2405.13685)",
    statement="A blend is nearer to the second tensor than the first tensor is.",
    testbed="none",
    arms=(Arm("first", "the first tensor", "baseline"), Arm("blend", "the blend", "method")),
    targets=(at_most("distance", "blend", "first", ratio=0.5),),
    scales={
        "smoke": Scale((500,), 60, {"rows": 4}),
        "quick": Scale((500,), 60, {"rows": 64}),
        "laptop": Scale((1000, 1001, 1002), 60, {"rows": 256}),
    },
    prepare=prepare,
    run=run,
    preconditions=(Floor("first", "distance", 0.1, "the two tensors differ by only {:.2f}"),),
    units="row",
    columns={"distance": "distance to the second tensor"},
)
