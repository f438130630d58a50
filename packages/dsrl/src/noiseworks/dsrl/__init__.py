"""DSRL (arXiv 2506.15799): reinforcement learning over the noise that a frozen diffusion policy starts from.

Read `decoder` (the frozen policy as a function of its noise), `latent_env` (the decision problem over noise, which SAC
solves), `noise_aliasing` (DSRL-NA), then `hosts` and `steering`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
