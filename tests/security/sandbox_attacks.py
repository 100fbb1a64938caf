"""What hostile code tries inside a sandbox, as data: the driver's tests and the public API's tests run the same list.

An answer is what a caller sees: `result`, `error`, `stdout`, `stderr`. `holds` says whether the attack failed.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Answer = Mapping[str, object]
SECRET = "hunter2"
X86 = os.uname().machine == "x86_64"


@dataclass(frozen=True)
class Host:
    """What is worth stealing on the machine that runs the sandbox."""

    port: int
    """A service on 127.0.0.1, as PostgreSQL is."""
    abstract: str
    """An abstract Unix socket's name."""
    secret_file: Path


@dataclass(frozen=True)
class Attack:
    """One attempt."""

    name: str
    code: str
    holds: Callable[[Answer], bool]
    wall_seconds: float = 10.0
    namespaces: bool = True
    """Whether it needs namespaces to hold: at the Landlock level something weaker does."""
    needs: tuple[str, ...] = ()
    """Packages that the code imports."""


@contextmanager
def bait(directory: Path) -> Iterator[Host]:
    """Put something worth stealing on this machine, its environment included."""
    secret = directory / "secret.txt"
    secret.write_text("host secret")
    os.environ["TOP_SECRET"] = SECRET
    abstract = f"sinas-bait-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as service, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{abstract}")
        unix.listen(1)
        yield Host(service.getsockname()[1], abstract, secret)
    del os.environ["TOP_SECRET"]


def handler(body: str) -> str:
    return "def handler(input_data, context):\n" + "".join(f"    {line}\n" for line in body.splitlines())


def text(answer: Answer) -> str:
    return str({key: value for key, value in answer.items() if key != "traceback"})


def failed(*reasons: str) -> Callable[[Answer], bool]:
    """The code raised, for one of these reasons."""
    return lambda answer: answer["result"] is None and any(
        reason.lower() in str(answer["error"]).lower() for reason in reasons
    )


def gives(expected: object) -> Callable[[Answer], bool]:
    return lambda answer: answer["result"] == expected


def result_list(answer: Answer) -> list[object]:
    result = answer["result"]
    return result if isinstance(result, list) else []


UNREACHABLE = failed("refused", "unreachable", "not permitted", "timed out", "Errno 1]", "Tunnel")
NO_FILE = failed("FileNotFound", "NotADirectory", "PermissionError")
READ_ONLY = failed("Read-only", "PermissionError")


def attacks(host: Host) -> list[Attack]:
    """All attempts."""
    return [
        *_looking_around(host),
        *_files(host),
        *_network(host),
        *_kernel(),
        *_resources(),
        *_leftovers(),
        *_protocol(),
    ]


def _looking_around(host: Host) -> list[Attack]:
    status = """names = ('CapEff','CapPrm','CapBnd','CapInh','CapAmb','NoNewPrivs','Seccomp')
return {l.split(':')[0]: l.split()[1] for l in open('/proc/self/status') if l.split(':')[0] in names}"""
    none = "0" * 16
    return [
        Attack(
            "capabilities, no_new_privs and seccomp",
            handler(status),
            gives(
                {f"Cap{kind}": none for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
                | {"NoNewPrivs": "1", "Seccomp": "2"}
            ),
            namespaces=True,
        ),
        Attack(
            "the platform's environment",
            handler("import os\nreturn [dict(os.environ), open('/proc/self/environ').read().split(chr(0))]"),
            lambda answer: SECRET not in text(answer) and len(result_list(answer)) == 2,
        ),
        Attack(
            "the platform's environment, anywhere",
            handler("import os\nreturn [k for k in os.environ if 'SECRET' in k or 'KEY' in k or 'PASSWORD' in k]"),
            gives([]),
            namespaces=False,
        ),
        Attack(
            "other processes",
            handler("import os\nreturn [p for p in os.listdir('/proc') if p.isdigit()]"),
            gives(["1"]),
        ),
        Attack(
            "processes without a PID namespace",
            handler("import os\nreturn os.listdir('/proc')"),
            lambda answer: NO_FILE(answer) or "kcore" not in text(answer),
            namespaces=False,
        ),
        Attack(
            "kernel files in /proc",
            handler("import os\nreturn [n for n in ('kcore', 'kallsyms', 'sys') if os.path.exists('/proc/' + n)]"),
            gives([]),
        ),
        Attack(
            "what the root holds",
            handler("import os\nreturn sorted(set(os.listdir('/')) & {'home','var','run','sys','boot','srv','opt'})"),
            gives([]),
        ),
        Attack(
            "host paths in mountinfo lead nowhere",
            handler(
                "import os\n"
                "sources = {l.split()[3] for l in open('/proc/self/mountinfo')}\n"
                f"return [s for s in sources if os.path.exists(s + '/{host.secret_file.name}')]"
            ),
            gives([]),
        ),
        Attack(
            "descriptors",
            handler(
                "import os\nfound = []\nfor fd in range(1000):\n"
                "    try: os.fstat(fd); found.append(fd)\n    except OSError: pass\nreturn found"
            ),
            gives([0, 1, 2, 3]),
            namespaces=False,
        ),
        Attack("signals to host processes", handler(_KILL_ALL), gives([]), namespaces=False),
        Attack("becoming root", handler("import os\nos.setuid(0)"), failed("PermissionError", "Invalid argument")),
    ]


_KILL_ALL = """import os
reached = []
for pid in range(2, 5000):
    try: os.kill(pid, 0); reached.append(pid)
    except OSError: pass
return reached"""


def _files(host: Host) -> list[Attack]:
    paths = [
        "/etc/shadow",
        str(host.secret_file),
        str(Path(__file__).resolve()),
        "/proc/1/root/etc/shadow",
        "/proc/sys/kernel/core_pattern",
        "/root/.ssh",
        "/var/lib",
        "/home",
        "/sys/kernel",
        "/run",
        "/usr/bin/env",
    ]
    read = "import os\np = {!r}\nreturn os.listdir(p) if os.path.isdir(p) else open(p).read()"
    return [
        *(
            Attack(f"read a file of the host, {number}", handler(read.format(path)), NO_FILE, namespaces=False)
            for number, path in enumerate(paths, 1)
        ),
        Attack(
            "write to the interpreter",
            handler("import json, os\nopen(os.path.dirname(json.__file__) + '/x', 'w')"),
            READ_ONLY,
            namespaces=False,
        ),
        Attack(
            "write to the packages",
            handler("import sys\nopen(sys.path[-1] + '/x', 'w')"),
            READ_ONLY,
            namespaces=False,
        ),
        Attack("write to /", handler("open('/x', 'w')"), READ_ONLY, namespaces=False),
        Attack(
            "fill /tmp with one file",
            handler(
                "n = 0\nf = open('/tmp/a', 'wb', buffering=0)\ntry:\n"
                "    while True: f.write(b'x' * 1000000); n += 1\nexcept OSError as e: return [n, str(e)]"
            ),
            lambda answer: 90 <= _first(answer) <= 106,
            wall_seconds=30,
        ),
        Attack(
            "fill /tmp with many files",
            handler(
                "n = 0\ntry:\n    while True: open(f'/tmp/{n}', 'w').close(); n += 1\n"
                "except OSError as e: return [n, str(e)]"
            ),
            lambda answer: 0 < _first(answer) < 5000,
        ),
        Attack(
            "run a program from /tmp",
            handler(
                "import os, subprocess\nopen('/tmp/s', 'w').write('#!/x')\nos.chmod('/tmp/s', 0o755)\n"
                "return subprocess.run(['/tmp/s']).returncode"
            ),
            failed("PermissionError"),
        ),
    ]


def _first(answer: Answer) -> int:
    first = (result_list(answer) or [-1])[0]
    return first if isinstance(first, int) else -1


def _network(host: Host) -> list[Attack]:
    connect = "import socket\nsocket.create_connection(({!r}, {}), 5)\nreturn 'connected'"
    proxied = (
        "import socket\ns = socket.create_connection(('127.0.0.1', 3128), 5)\n"
        "s.sendall(b'CONNECT {}:{} HTTP/1.1\\r\\n\\r\\n')\n"
        "answer = s.recv(1000)\nif b' 200 ' in answer: return 'connected'\nraise OSError('refused: ' + answer.decode())"
    )
    targets: list[tuple[str, int]] = [
        ("169.254.169.254", 80),
        ("::ffff:169.254.169.254", 80),
        ("10.0.0.1", 80),
        ("::ffff:127.0.0.1", host.port),
        ("2130706433", host.port),
        ("127.1", host.port),
        ("0x7f000001", host.port),
        ("host.docker.internal", host.port),
        ("fd00:ec2::254", 80),
        ("64:ff9b::7f00:1", host.port),
        ("metadata.google.internal", 80),
    ]
    unix = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0{host.abstract}')\nreturn 'connected'"
    families = """import socket
opened = []
for family in (16, 17, 40, 38, 31):
    for kind in (socket.SOCK_RAW, socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try: socket.socket(family, kind); opened.append([family, kind])
        except OSError: pass
return opened"""
    return [
        Attack("host loopback", handler(connect.format("127.0.0.1", host.port)), UNREACHABLE, namespaces=False),
        *(
            Attack(f"connect to {name}", handler(connect.format(name, port)), _no_way, namespaces=False)
            for name, port in targets
        ),
        *(
            Attack(f"proxy to {name}", handler(proxied.format(f"[{name}]" if ":" in name else name, port)), _no_way)
            for name, port in (*targets, ("127.0.0.1", host.port), ("localhost", host.port))
        ),
        Attack("abstract Unix socket of the host", handler(unix), UNREACHABLE, namespaces=False),
        Attack("netlink, packet, vsock and other families", handler(families), gives([]), namespaces=False),
        Attack(
            "UDP to the outside",
            handler("import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"),
            UNREACHABLE,
            namespaces=False,
        ),
    ]


def _no_way(answer: Answer) -> bool:
    return answer["result"] is None and bool(answer["error"])


def _kernel() -> list[Attack]:
    calls: dict[str, tuple[int, int, str]] = {
        "mount": (165, 40, "0"),
        "unshare": (272, 97, "0x10000000"),
        "ptrace": (101, 117, "0"),
        "bpf": (321, 280, "0"),
        "perf_event_open": (298, 241, "0"),
        "keyctl": (250, 219, "0"),
        "io_uring_setup": (425, 425, "0"),
        "setns": (308, 268, "0"),
        "userfaultfd": (323, 282, "0"),
        "clone3": (435, 435, "0"),
        "pivot_root": (155, 41, "0"),
        "open_by_handle_at": (304, 265, "0"),
    }
    if X86:
        calls |= {
            "x32 getpid": (0x40000000 + 39, -1, "0"),
            "mknod of a device": (133, -1, 'b"/tmp/dev", 0o20666, 0x103'),
        }
    raw = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "return [libc.syscall({}, {}, 0, 0, 0, 0), ctypes.get_errno()]"
    )
    clone = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "r = libc.syscall({}, 0x10000000 | 17, 0, 0, 0, 0)\nif r == 0: os._exit(0)\nreturn [r, ctypes.get_errno()]"
    )
    return [
        *(
            Attack(
                f"system call {name}",
                handler(raw.format(numbers[0 if X86 else 1], arguments)),
                lambda answer: _first(answer) == -1 and len(result_list(answer)) == 2,
                namespaces=False,
            )
            for name, (*numbers, arguments) in calls.items()
        ),
        Attack(
            "clone into a new user namespace",
            handler(clone.format(56 if X86 else 220)),
            gives([-1, 1]),
            namespaces=False,
        ),
    ]


def _resources() -> list[Attack]:
    memory = failed("memory limit", "MemoryError")
    children = """import os, time
pids = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        x = bytearray(200 << 20)
        time.sleep(2)
        os._exit(0)
    pids.append(pid)
return [os.waitpid(pid, 0)[1] for pid in pids]"""
    fork_bomb = """import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0: time.sleep(5); os._exit(0)
        n += 1
except OSError as e: return [n, str(e)]
return [n, 'no limit']"""
    thread_bomb = """import threading, time
n = 0
try:
    while n < 500: threading.Thread(target=time.sleep, args=(3,), daemon=True).start(); n += 1
except BaseException as e: return [n, str(e)]
return [n, 'no limit']"""
    return [
        Attack(
            "1 GB of memory",
            handler("x = bytearray(1 << 30)\nx[::4096] = b'1' * len(x[::4096])\nreturn len(x)"),
            memory,
        ),
        Attack(
            "1 GB of memory in numpy",
            handler("import numpy as np\nx = np.ones(1 << 27)\nreturn float(x.sum())"),
            failed("memory limit", "Memory", "allocate"),
            needs=("numpy",),
            namespaces=False,
        ),
        Attack(
            "shared memory that no process maps",
            handler(
                "import os\nfds = [os.memfd_create(str(i)) for i in range(20)]\n"
                "for fd in fds:\n    for _ in range(60): os.write(fd, b'x' * (1 << 20))\nreturn 'kept'"
            ),
            failed("memory limit", "PermissionError"),
            namespaces=False,
        ),
        Attack(
            "memory spread over child processes",
            handler(children),
            lambda answer: memory(answer) or 9 in result_list(answer),
            wall_seconds=20,
        ),
        Attack("fork bomb", handler(fork_bomb), lambda answer: 0 < _first(answer) < 40, wall_seconds=20),
        Attack("thread bomb", handler(thread_bomb), lambda answer: 0 < _first(answer) < 40, wall_seconds=20),
        Attack("sleep for ever", handler("import time\ntime.sleep(100)"), failed("time limit"), 1.0, namespaces=False),
        Attack("spin for ever", handler("while True: pass"), failed("time limit", "CPU limit"), 1.0, namespaces=False),
        Attack(
            "ignore every signal",
            handler(
                "import signal\nfor s in range(1, 65):\n"
                "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"
            ),
            failed("time limit", "CPU limit"),
            1.0,
            namespaces=False,
        ),
    ]


def _leftovers() -> list[Attack]:
    escape = """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
return 'done'"""
    leave = (
        "import json\njson.hacked = 1\n"
        "def handler(input_data, context):\n"
        "    import os, tempfile\n    open(tempfile.gettempdir() + '/leftover', 'w').write('x')\n    return 1\n"
    )
    look = (
        "import json\ndef handler(input_data, context):\n    import os, tempfile\n"
        "    return [hasattr(json, 'hacked'), os.listdir(tempfile.gettempdir())]\n"
    )
    return [
        Attack("leave a daemon behind", handler(escape), gives("done")),
        Attack("leave state behind", leave, gives(1), namespaces=False),
        Attack("find state of others", look, gives([False, []]), namespaces=False),
    ]


def _protocol() -> list[Attack]:
    return [
        Attack("huge result", handler("return 'x' * 20_000_000"), failed("larger than the limit"), namespaces=False),
        Attack(
            "flood of output",
            handler("import os\nfor i in range(200): os.write(1, b'y' * 100000)\nreturn 1"),
            lambda answer: answer["result"] == 1 and len(str(answer.get("stdout") or "")) < 2 << 20,
            namespaces=False,
        ),
        Attack(
            "garbage instead of a result",
            handler("import os\nos.write(3, b'\\0\\0\\0\\5hello')\nos._exit(0)"),
            failed("not a result", "cannot be returned"),
            namespaces=False,
        ),
        Attack(
            "a result of 4 GB announced",
            handler("import os\nos.write(3, b'\\xff\\xff\\xff\\xff')\nwhile True: os.write(3, b'x' * 65536)"),
            failed("larger than the limit"),
            namespaces=False,
        ),
        Attack(
            "a forged status",
            handler('import os\nb = b\'{"status": "admin"}\'\nos.write(3, len(b).to_bytes(4, "big") + b)\nos._exit(0)'),
            failed("not a result", "cannot be returned"),
            namespaces=False,
        ),
        Attack(
            "deeply nested result",
            handler("x = []\nfor _ in range(100000): x = [x]\nreturn x"),
            failed("not JSON"),
            namespaces=False,
        ),
    ]
