"""What a tree of processes really occupies: its proportional set size."""

from pathlib import Path

from sinas_server.backends.embedded.process import descendants


def pss_total(pid: int) -> dict[str, int]:
    """Bytes of proportional set size of `pid` and all below it, per process, keyed `NAME[PID]`.

    Pages shared by several processes are counted in parts, so the sum is what the tree occupies (smaps_rollup, Linux).
    """
    sizes: dict[str, int] = {}
    for each in (pid, *descendants(pid)):
        try:
            name = Path(f"/proc/{each}/comm").read_text().strip()
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                sizes[f"{name}[{each}]"] = int(line.split()[1]) << 10
    return sizes
