"""What an execution tries on its neighbours: other executions, other pools, and what the same user has on the host.

As a file of its own it can be started as another user and where namespaces are forbidden. Usage: `neighbour_attack.py
HOME pools`: two pools, an execution in each, a third that attacks them; `... filter`: the system call filter alone,
without Landlock; `... nothing`: no filter either, which shows that the attempts work. Prints JSON.
"""

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from sinas_server.backends.sandbox import Limits, Outcome, Sandbox, Task
from sinas_server.backends.sandbox.guest import seccomp
from sinas_server.backends.sandbox.guest import syscalls as sc
from sinas_server.backends.sandbox.guest.numbers import HERE
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from sinas_server.backends.sandbox.native.watchdog import tree

ATTACK = """import contextlib, ctypes, fcntl, os, resource, signal, socket

def handler(prey, context):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_long
    number = getattr(signal, prey["signal"])

    def call(name, *arguments):
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)

    def owner(pid):
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reader, 10, number)  # F_SETSIG
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writer, b"x")

    def controlled(pid):
        left, right = socket.socketpair()
        fcntl.ioctl(left, 0x8901, pid.to_bytes(4, "little"))  # FIOSETOWN

    def datagram():
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        left.sendto(b"x", prey["abstract"])

    def peek(pid):
        local = ctypes.create_string_buffer(8)
        here = (ctypes.c_size_t * 2)(ctypes.addressof(local), 8)
        there = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.pythonapi.Py_GetVersion), 8)
        call("process_vm_readv", pid, here, 1, there, 1, 0)

    on_processes = {
        "kill": lambda pid: os.kill(pid, number),
        "tgkill": lambda pid: call("tgkill", pid, pid, number),
        "sigqueue": lambda pid: call("sigqueue", pid, number, 0),
        "pidfd": lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), number),
        "a pipe's owner": owner,
        "a socket's owner": controlled,
        "limits": lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE),
        "affinity": lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
        "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
        "robust list": lambda pid: call("syscall", prey["robust"], pid, ctypes.byref(ctypes.c_size_t()),
                                        ctypes.byref(ctypes.c_size_t())),
        "memory": peek,
        "memory file": lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
        "environment": lambda pid: open(f"/proc/{pid}/environ", "rb").read(),
        "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
        "working directory": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
        "seize": lambda pid: call("ptrace", 0x4206, pid, 0, 0),
    }
    on_objects = {
        "everybody": lambda: os.kill(-1, 0),
        "shared memory": lambda: call("shmat", prey["memory"], 0, 0),
        "about shared memory": lambda: call("shmctl", prey["memory"], 2, ctypes.create_string_buffer(200)),
        "a message": lambda: call("msgsnd", prey["queue"], b"\\1" + b"\\0" * 15, 8, 0o4000),
        "a semaphore": lambda: call("semctl", prey["semaphore"], 0, 12, 0),
        "a datagram": datagram,
    }
    reached = set()
    for pid in set(prey["pids"]) - {os.getpid()}:
        for name, attempt in on_processes.items():
            try:
                attempt(pid)
            except OSError:
                continue
            reached.add(name)
    for name, attempt in on_objects.items():
        try:
            attempt()
        except OSError:
            continue
        reached.add(name)
    if number == signal.SIGKILL:  # of itself at most, which process 1 of a namespace survives
        with contextlib.suppress(PermissionError):
            os.kill(0, number)
    return sorted(reached)
"""
VICTIM = """import os, sys, time

def handler(directory, context):
    print("started", flush=True)
    while not os.path.exists(sys.path[-1] + "/go"):
        time.sleep(0.02)
    return "alive"
"""
ITSELF = """import os, signal, threading

def handler(input_data, context):
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    worker = threading.Thread(target=heard.append, args=(0,))
    worker.start()
    worker.join()
    return heard
"""
LIBC = ctypes.CDLL(None, use_errno=True)
IPC_PRIVATE, IPC_RMID = 0, 0


Prey = dict[str, JsonValue]
"""What is there to reach."""


@contextmanager
def objects() -> Iterator[Prey]:
    """What the same user has on the host, as PostgreSQL has its shared memory."""
    memory = LIBC.shmget(IPC_PRIVATE, 4096, 0o600)
    queue = LIBC.msgget(IPC_PRIVATE, 0o600)
    semaphore = LIBC.semget(IPC_PRIVATE, 1, 0o600)
    assert min(memory, queue, semaphore) >= 0, os.strerror(ctypes.get_errno())
    abstract = f"\0sinas-prey-{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            unix.bind(abstract)
            robust = HERE.numbers["get_robust_list"]
            numbers: Prey = {"memory": memory, "queue": queue, "semaphore": semaphore, "robust": robust}
            yield {**numbers, "abstract": abstract, "pids": [], "signal": "SIGCONT"}
    finally:
        LIBC.shmctl(memory, IPC_RMID, 0)
        LIBC.msgctl(queue, IPC_RMID, 0)
        LIBC.semctl(semaphore, 0, IPC_RMID)


async def pools(home: Path) -> dict[str, object]:
    """Two pools, an execution in each, and one that attacks."""
    (home / "packages").mkdir()
    sandboxes = [open_sandbox(SandboxConfig(packages=(home / "packages",), min_size=2)) for _ in range(2)]
    try:
        for sandbox in sandboxes:
            await sandbox.start()
        return {"level": sandboxes[0].level.name, **await attacked(sandboxes, home)}
    finally:
        for sandbox in sandboxes:
            await sandbox.close()


async def attacked(sandboxes: Sequence[Sandbox], home: Path) -> dict[str, object]:
    """What the attacker reached, what became of its neighbours, and what it may still do to itself."""
    started = [asyncio.Event() for _ in sandboxes]
    limits = Limits(wall_seconds=60)

    async def victim(number: int) -> Outcome:
        task = Task(VICTIM, ("handler",), None, {}, limits)
        return await sandboxes[number].run(task, lambda _name, _text: started[number].set())

    victims = [asyncio.create_task(victim(number)) for number in range(len(sandboxes))]
    for event in started:
        await event.wait()
    with objects() as prey:
        prey["pids"], prey["signal"] = list(tree(os.getpid())), "SIGKILL"
        attack = await sandboxes[0].run(Task(ATTACK, ("handler",), prey, {}, limits))
    itself = await sandboxes[0].run(Task(ITSELF, ("handler",), None, {}, limits))
    (home / "packages" / "go").touch()
    outcomes = await asyncio.gather(*victims)
    return {
        "reached": attack.result if attack.error is None else attack.error,
        "victims": [outcome.result for outcome in outcomes],
        "itself": itself.result if itself.error is None else itself.error,
    }


def alone(*, filtered: bool) -> dict[str, object]:
    """The attack on a child of this process; with nothing or with the filter of the weakest level in its way."""
    victim = os.fork()
    if victim == 0:
        time.sleep(60)
        os._exit(0)
    try:
        with objects() as prey:
            return {"reached": from_child({**prey, "pids": [victim]}, filtered=filtered)}
    finally:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)


def from_child(prey: Prey, *, filtered: bool) -> object:
    """What the attack says that runs in a child of this process, which the filter stays on."""
    reader, writer = os.pipe()
    attacker = os.fork()
    if attacker == 0:
        names: dict[str, object] = {}
        exec(ATTACK, names)  # noqa: S102 - the code above
        handler = names["handler"]
        assert callable(handler)
        if filtered:
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(seccomp.own_signals(os.getpid()))
            seccomp.install(seccomp.build(seccomp.Filter(own_processes=False, memory_counted=True, own_ipc=False)))
        os.write(writer, json.dumps(handler(prey, {})).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(attacker, 0)
    return json.loads(said or b'"the attacker died"')


def main(home: str, what: str) -> None:
    json.dump(asyncio.run(pools(Path(home))) if what == "pools" else alone(filtered=what == "filter"), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
