"""DiWA (arXiv 2508.03645): a diffusion policy tuned inside a world model, with no step in the real environment.

Read `world_model`, `rewards` (what counts as success), `policy` (the chain and its tail), `latent_env` (dreams),
`dream_ppo`, `deployment`, then `training`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
