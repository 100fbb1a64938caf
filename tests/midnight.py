"""For tests of what is counted by days: none of them lasts from one into the next."""

import time
from datetime import timedelta

from sinas_server.kit.clock import now

SECONDS = 45.0
"""How long such a test may last."""


def keep_clear_of_midnight() -> None:
    """Wait for the next day if this one ends too soon."""
    moment = now()
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    left = (midnight - moment).total_seconds()
    if left < SECONDS:
        time.sleep(left + 0.5)
