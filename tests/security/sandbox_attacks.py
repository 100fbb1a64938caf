"""What hostile code tries inside a sandbox, as data: tests of the driver and of the public API run the same list."""

from tests.security.attack import Attack, Host, bait
from tests.security.attacks_on_host import files, looking_around, network
from tests.security.attacks_on_kernel import kernel
from tests.security.attacks_on_limits import leftovers, protocol, resources

__all__ = ["Attack", "Host", "attacks", "bait"]


def attacks(host: Host) -> list[Attack]:
    """All attempts."""
    return [
        *looking_around(host),
        *files(host),
        *network(host),
        *kernel(),
        *resources(),
        *leftovers(),
        *protocol(),
    ]
