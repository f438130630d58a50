"""Policy-guided diffusion (arXiv 2404.06356): synthetic trajectories near a target policy, for offline learners.

Read `windows` (what a trajectory is to the network), `denoiser` (network and loss), `guidance` and `sampling` (the
method), `policies` (what may guide), then `model`, `replay` and `agents`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
