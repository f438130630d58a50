"""EXPO (arXiv 2507.07986): an expressive policy proposes, edits correct, and the best candidate is played.

Read `base` (the policy that imitates), `editing`, `on_the_fly` (the policy that acts), then `learner` (algorithm 1) and
`training`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
