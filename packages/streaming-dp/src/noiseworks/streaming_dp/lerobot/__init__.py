"""Streaming inside LeRobot: on a policy object, and as the policy type `streaming_dp` of its commands.

LeRobot imports this package and its modules when a command names it as `--discover_packages_path`.
"""

from noiseworks.streaming_dp.lerobot.attaching import attach

__all__ = ["attach"]
