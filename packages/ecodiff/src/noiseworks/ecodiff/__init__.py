"""EcoDiff (arXiv 2412.02852): masks on heads and neurons learned through the whole sampler, then removed for good.

Read `hard_concrete` (masks from logits, penalties), `objective` (the loss of a whole run), `learning`, `selection`,
`importance` (the baselines), then `recovery`. Removal itself is `noiseworks.kits.diffusers_hosts.remove_units`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
