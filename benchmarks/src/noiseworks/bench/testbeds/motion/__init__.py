"""Testbed `motion`: synthetic gait, sitting and lying down, and rooms of boxes with places to go, to sit and to lie.

Skeleton, gait and rooms are synthetic, and named so: `ProcBody` of the kit, `procgait`, `boxroom`. A clip and a case
are pure functions of (seed, index). No clip was ever in a room: whoever moves well in one has not seen it done.
"""

from noiseworks.bench.testbeds.motion.boxroom import Cases, draw_cases
from noiseworks.bench.testbeds.motion.procgait import ACTIONS, FPS, FRAMES, KINDS, Clips, draw_clips

__all__ = ["ACTIONS", "FPS", "FRAMES", "KINDS", "Cases", "Clips", "draw_cases", "draw_clips"]
