"""Trajectory Diffuser (arXiv 2407.16142): a sequence model drafts a plan, a few late diffusion steps refine it.

Read `drafting` (the feasible generator), `refining` (the trajectory optimiser), `planner` (a plan and its action), then
`acting` and `training`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
