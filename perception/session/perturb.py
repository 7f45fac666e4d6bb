"""Old name of `perception.session.recompute.perturb`."""

from perception.session.recompute.perturb import *  # noqa: F403
