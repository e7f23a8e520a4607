"""What happens between two inferences; the same objects in the simulator and on a robot."""

from vega_policy.control.schedule import OpenLoop, require_valid_chunk

__all__ = ["OpenLoop", "require_valid_chunk"]
