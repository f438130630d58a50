"""Blending concepts in one image, each step conditioned by the concept whose call is cheapest (arXiv 2405.13685).

Read `pricing` (Black-Scholes in log space), `policies` (the rule and its baselines), `diffusers` (the hook), `scorers`,
`comparison`, `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
