"""Perturbations for tests, under their public name: see `perception.session.recompute.perturb`."""

from perception.session.recompute.perturb import *  # noqa: F403
