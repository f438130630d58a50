"""Adaptive Guidance and LinearAG (arXiv 2312.12487): guidance with fewer network evaluations.

Read `guidance` (similarity, actions, what takes a skipped prediction's place), `policies` (AG and fixed rules),
`linear` (LinearAG), `thresholds`, `search`, then `diffusers` (the hook), `calibration` and `policy_search`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
