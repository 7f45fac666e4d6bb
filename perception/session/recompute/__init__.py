"""States of a recording, computed again: without process, socket or clock."""
