"""Testbed `pusht`: the T that is pushed onto its outline (gym-pusht), through the extra `[pusht]`.

It brings neither demonstrations nor an expert, so nothing is trained on it here; policies come from elsewhere.
"""

from noiseworks.bench.testbeds.pusht.simulation import OBSERVATIONS, PushTBatch

__all__ = ["OBSERVATIONS", "PushTBatch"]
