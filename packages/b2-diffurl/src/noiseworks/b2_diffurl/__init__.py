"""B2-DiffuRL (arXiv 2503.11240): tuning by sparse rewards, the last denoising steps first, on branches.

Read `options` (the stages), `branches` (normalised rewards, and which branches teach), `training`, then `commands`.
Steps, trees of rollouts and the loop are those of `noiseworks.kits.image_tuning`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
