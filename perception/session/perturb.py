"""Public name of the perturbations for tests: see `perception.session.recompute.perturb`."""

from perception.session.recompute.perturb import *  # noqa: F403
