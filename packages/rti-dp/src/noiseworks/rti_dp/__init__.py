"""RTI-DP (arXiv 2508.05396): diffusion policies that replan at every step from their previous plan.

Read `stepping` (lists of steps), `policy` (the warm start and the loop around it), `discrete` (grippers), `schedule`
(which noise schedule is stepped on), `gaussian` (what a replan leaves of an error), `suggestion`, then `baselines`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
