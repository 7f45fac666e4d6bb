"""Former name of the pytest plugin `perception.session.recompute.pytest_plugin`."""

from perception.session.recompute.pytest_plugin import *  # noqa: F403
