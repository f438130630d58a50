"""FIND (arXiv 2407.19453): fine-tuning the distribution of the initial noise by policy optimisation.

Read `noise` (the policy over noise and the calibrator of rewards), `objective` (its loss), `fitting` (the loop and its
baselines), then `diffusers`. The network is a black box that turns noise into images.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
