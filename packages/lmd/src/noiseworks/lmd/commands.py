"""What `noiseworks-lmd` runs: each verb is one of these functions."""

from noiseworks.core.options import Spread
from noiseworks.lmd.options import Blending


def blend_numbers(
    *, first: float, second: float, blending: Spread[Blending] = Blending()
) -> dict[str, float]:
    """Blend two numbers.

    Args:
        first: The first number.
        second: The second number.
        blending: How they are blended.

    Returns:
        The blend.
    """
    import torch
    from noiseworks.lmd.blending import blend

    return {"blend": float(blend(torch.tensor(first), torch.tensor(second), blending.weight))}
