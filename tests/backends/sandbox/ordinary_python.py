"""What functions ordinarily do with Python, its standard library and numpy, so that no refused system call breaks it.

Runs every exercise on a driver in this process' place and prints what each gave as JSON; with `docker` on that one.
A file of its own, so that it can be started as another user.
"""

import asyncio
import json
import sys
from dataclasses import dataclass

from sinas_server.backends.sandbox import Limits, Sandbox, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from tests.backends.sandbox.conftest import PACKAGES
from tests.backends.sandbox.engine import open_docker


@dataclass(frozen=True)
class Exercise:
    """The body of a handler, and what it returns."""

    body: str
    gives: object
    alone: bool = True
    """It needs no other process, no socket and no changes of modes, so that it works at the Landlock level too."""


EXERCISES = {
    "threads": Exercise(
        """import concurrent.futures, queue, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool: squares = sum(pool.map(lambda x: x * x, range(100)))
waiting, done = queue.Queue(), threading.Event()
threading.Timer(0.01, lambda: (waiting.put(1), done.set())).start()
return [squares, waiting.get(timeout=5), done.wait(5), threading.Event().wait(0.01)]""",
        [328350, 1, True, False],
    ),
    "asyncio": Exercise(
        """import asyncio, signal, os
async def main():
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await heard.wait()
    async with asyncio.timeout(5):
        return await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(os.getpid))
return asyncio.run(main())[0]""",
        1,
    ),
    "files": Exercise(
        """import fcntl, os, shutil, tempfile, zipfile
with tempfile.TemporaryDirectory() as d:
    os.chdir(d)
    os.makedirs('a/b')
    with open('a/b/one', 'w+') as f:
        f.write('x' * 10000); f.flush(); os.fsync(f.fileno())
        fcntl.lockf(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_SH)
        os.ftruncate(f.fileno(), 5000); os.posix_fallocate(f.fileno(), 0, 6000); os.pwrite(f.fileno(), b'y', 0)
    os.replace('a/b/one', 'a/b/two'); os.link('a/b/two', 'a/b/three')
    os.symlink('two', 'a/b/four'); os.mkfifo('a/fifo')
    shutil.copyfile('a/b/two', 'five')
    with open('a/b/two', 'rb') as i, open('six', 'wb') as o:
        os.sendfile(o.fileno(), i.fileno(), 0, 3000); os.copy_file_range(i.fileno(), o.fileno(), 1000)
    with zipfile.ZipFile('z', 'w') as z: z.write('five')
    sizes = [os.stat(p).st_size for p in ('a/b/four', 'five', 'six')]
    found = sorted(name for _, _, names in os.walk('.') for name in names)
    return [sizes, found, os.readlink('a/b/four'), os.access('z', os.R_OK)]""",
        [[6000, 6000, 4000], ["fifo", "five", "four", "six", "three", "two", "z"], "two", True],
    ),
    "modes and times": Exercise(
        """import os, shutil, tarfile
open('f', 'w').close(); os.chmod('f', 0o640); os.utime('f', (1, 2)); shutil.copy2('f', 'g')
with tarfile.open('t', 'w') as t: t.add('f')
with tarfile.open('t') as t: t.extractall('out')
return [os.stat(p).st_mtime for p in ('f', 'g', 'out/f')] + [oct(os.stat('g').st_mode)]""",
        [2, 2, 2, "0o100640"],
        alone=False,
    ),
    "sqlite": Exercise(
        """import sqlite3
with sqlite3.connect('x.db') as db:
    db.execute('pragma journal_mode=wal'); db.execute('create table t(x)')
    db.executemany('insert into t values(?)', [(n,) for n in range(1000)])
return sqlite3.connect('x.db').execute('select sum(x) from t').fetchone()""",
        [499500],
    ),
    "mapped memory": Exercise(
        """import mmap, os
with mmap.mmap(-1, 1 << 20) as m: m.resize(2 << 20); m[:3] = b'abc'; m.madvise(mmap.MADV_DONTNEED)
with open('m', 'wb+') as f:
    f.write(b'x' * 8192); f.flush()
    with mmap.mmap(f.fileno(), 8192) as m: m[0:1] = b'y'; m.flush()
    return os.pread(f.fileno(), 2, 0).decode()""",
        "yx",
    ),
    "waiting": Exercise(
        """import os, select, selectors, socket
left, right = socket.socketpair()
left.send(b'x')
poll, epoll, chosen = select.poll(), select.epoll(), selectors.DefaultSelector()
poll.register(right, select.POLLIN); epoll.register(right, select.EPOLLIN); chosen.register(right, selectors.EVENT_READ)
event = os.eventfd(3)
told = [len(poll.poll(0)), len(epoll.poll(0)), len(chosen.select(0)), len(select.select([right], [], [], 0)[0])]
r, w = os.pipe(); os.write(w, b'pipe'); r2, w2 = os.pipe()
return told + [os.eventfd_read(event), os.splice(r, w2, 4), os.read(r2, 4).decode()]""",
        [1, 1, 1, 1, 3, 4, "pipe"],
    ),
    "signals and time": Exercise(
        """import signal, threading, time
heard = []
signal.signal(signal.SIGALRM, lambda n, f: heard.append(n))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # again: one may come before the pause
while not heard: signal.pause()
signal.setitimer(signal.ITIMER_REAL, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
caught = signal.sigtimedwait({signal.SIGUSR2}, 5).si_signo
clocks = [time.monotonic(), time.process_time(), time.thread_time(), time.clock_gettime(time.CLOCK_BOOTTIME),
          time.clock_getres(time.CLOCK_REALTIME)]
time.sleep(0.001)
return [heard[:1], caught, min(clocks) > 0, time.localtime(0).tm_year in (1969, 1970)]""",
        [[14], 12, True, True],
    ),
    "the machine": Exercise(
        """import os, platform, resource, secrets, getpass, sysconfig
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
told = [os.cpu_count(), len(os.sched_getaffinity(0)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, os.times()[0],
        platform.platform(), sysconfig.get_platform(), os.uname().machine, os.getpriority(os.PRIO_PROCESS, 0) + 1]
return [None not in told, len(os.getrandom(8)), len(secrets.token_bytes(4)), os.getpgrp() == os.getsid(0)]""",
        [True, 8, 4, True],
    ),
    "C functions": Exercise(
        """import ctypes
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 4)(3, 1, 4, 1)
ctypes.CDLL(None).qsort(numbers, 4, 4, compare(lambda a, b: a[0] - b[0]))
return list(numbers)""",
        [1, 1, 3, 4],
    ),
    "TLS": Exercise(
        """import ssl
context, bio, out = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
try: context.wrap_bio(bio, out, server_hostname='example.com').do_handshake()
except ssl.SSLWantReadError: return out.pending > 200""",
        True,
    ),
    "numpy": Exercise(
        """import numpy
a = numpy.random.default_rng(1).random((300, 300))
numpy.save('a.npy', a)
b = numpy.memmap('b', 'float64', 'w+', shape=a.shape); b[:] = numpy.load('a.npy', mmap_mode='r'); b.flush()
return bool(numpy.allclose(numpy.linalg.inv(numpy.linalg.inv(a)), b))""",
        True,
    ),
    "sockets": Exercise(
        """import socket
with socket.create_server(('127.0.0.1', 0)) as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    told = [server.getsockname()[0]]
with socket.socket(socket.AF_UNIX) as server:
    server.bind('/tmp/u'); server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect('/tmp/u'); server.accept()[0].sendall(b'unix'); told.append(client.recv(9).decode())
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two:
    one.bind(('127.0.0.1', 0)); two.sendto(b'udp', one.getsockname()); told.append(one.recv(9).decode())
left, right = socket.socketpair(); socket.send_fds(left, [b'x'], [0]); told.append(len(socket.recv_fds(right, 1, 1)[1]))
return told""",
        ["127.0.0.1", "unix", "udp", 1],
        alone=False,
    ),
    "processes": Exercise(
        """import asyncio, os, signal, subprocess, sys
command = [sys.executable, '-I', '-S', '-c', 'print(42)']
told = [subprocess.run(command, capture_output=True, text=True, start_new_session=True).stdout]
async def main():
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode()
told.append(asyncio.run(main()))
pid = os.posix_spawn(command[0], command, {}, file_actions=[(os.POSIX_SPAWN_CLOSE, 1)]); os.waitpid(pid, 0)
pid = os.fork()
if pid == 0: signal.pause()
fd = os.pidfd_open(pid); signal.pidfd_send_signal(fd, signal.SIGTERM)
told.append(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status)
return told""",
        ["42\n", "42\n", 15],
        alone=False,
    ),
    "multiprocessing": Exercise(
        """import multiprocessing, multiprocessing.shared_memory as shared, concurrent.futures, os
context = multiprocessing.get_context('fork')
queue, lock = context.Queue(), context.Lock()
process = context.Process(target=lambda: queue.put(os.getpid())); process.start(); told = [queue.get() == process.pid]
process.join()
with context.Pool(2) as pool: told.append(pool.map(abs, [-1, -2]))
memory = shared.SharedMemory(create=True, size=100); memory.buf[0] = 7
again = shared.SharedMemory(memory.name); told.append(again.buf[0]); memory.unlink()
with concurrent.futures.ProcessPoolExecutor(2, context) as pool: told.append(list(pool.map(abs, [-3])))
return told""",
        [True, [1, 2], 7, [3]],
        alone=False,
    ),
}


async def run(sandbox: Sandbox) -> dict[str, object]:
    """What each exercise returned, or why it did not."""
    await sandbox.start()
    try:
        found: dict[str, object] = {"level": sandbox.level.name}
        for name, exercise in EXERCISES.items():
            code = "def handler(input_data, context):\n" + "".join(
                f"    {line}\n" for line in exercise.body.splitlines()
            )
            outcome = await sandbox.run(Task(code, ("handler",), None, {}, Limits(wall_seconds=60)))
            found[name] = outcome.result if outcome.error is None else f"{outcome.error}\n{outcome.traceback}"
        return found
    finally:
        await sandbox.close()


def main() -> None:
    config = SandboxConfig(packages=(PACKAGES,), preload=("numpy",), min_size=1)
    json.dump(asyncio.run(run(open_docker(config) if sys.argv[1:] == ["docker"] else open_sandbox(config))), sys.stdout)


if __name__ == "__main__":
    main()
