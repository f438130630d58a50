"""Real-time iteration inside LeRobot: on a policy object, and as the policy type `rti_dp` of its commands.

LeRobot imports this package and its modules when a command names it as `--discover_packages_path`.
"""

from noiseworks.rti_dp.lerobot.attaching import attach

__all__ = ["attach"]
