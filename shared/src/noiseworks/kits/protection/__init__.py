"""Protecting images against diffusion editing: a small perturbation by the owner, on which editors fail.

Best effort, not a guarantee: purification and models other than the one protected against weaken it, and the kit
measures by how much. Images are floats [B, 3, H, W] in [0, 1]; budgets are in levels of 255 on that scale; masks
[B, 1, H, W] are 1 where an editor repaints.

- `engine`: projected gradient steps, one random stream an image, stopped and gone on with at any step.
- `hosts`: a diffusers pipeline as protections see it, with a count of the passes that they cost.
- `objectives`: what is descended, and which networks the gradient runs through.
- `files`: pictures in and out: orientation, transparency, grey, 16 bits, sizes; rounding within the budget.
- `transforms`: gradients through what an attacker may do to a picture first.
- `purifiers`, `editors`, `metrics`: what an attacker does to a protected image, and what then is left.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
