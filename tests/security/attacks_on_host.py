"""Attacks on the host: looking around, its files, its network."""

from pathlib import Path

from tests.security.attack import (
    NO_FILE,
    READ_ONLY,
    SECRET,
    UNREACHABLE,
    Answer,
    Attack,
    Host,
    failed,
    first_of,
    gives,
    handler,
    result_list,
    text,
)


def looking_around(host: Host) -> list[Attack]:
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
        *_the_root(host),
    ]


def _the_root(host: Host) -> list[Attack]:
    return [
        Attack(
            "kernel files in /proc",
            handler("import os\nreturn [n for n in ('kcore', 'kallsyms', 'sys') if os.path.exists('/proc/' + n)]"),
            gives([]),
            only_native="a container shows that they exist; that they cannot be read, other attacks tell",
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
        Attack("signals to host processes", handler(_KILL_ALL.format(host.pid)), gives([]), namespaces=False),
        Attack(
            "signals to the process group of whoever started it",
            handler("import os\nreturn [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()]"),
            gives([True, True]),
            namespaces=False,
        ),
        Attack("becoming root", handler("import os\nos.setuid(0)"), failed("PermissionError", "Invalid argument")),
    ]


_KILL_ALL = """import os
reached = []
for pid in {{*range(2, 33_000), os.getppid(), {}}} - {{os.getpid(), 0}}:
    try: os.kill(pid, 0); reached.append(pid)
    except OSError: pass
return reached"""


def files(host: Host) -> list[Attack]:
    paths = [
        "/etc/shadow",
        str(host.secret_file),
        str(Path(__file__).resolve()),
        "/proc/1/root/etc/shadow",
        "/proc/sys/kernel/core_pattern",
        "/proc/kallsyms",
        "/root/.ssh",  # path: what an attacker looks for
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
            lambda answer: 90 <= first_of(answer) <= 106,
            wall_seconds=30,
        ),
        Attack(
            "fill /tmp with many files",
            handler(
                "n = 0\ntry:\n    while True: open(f'/tmp/{n}', 'w').close(); n += 1\n"
                "except OSError as e: return [n, str(e)]"
            ),
            lambda answer: 0 < first_of(answer) < 5000,
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


def network(host: Host) -> list[Attack]:
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
from pathlib import Path
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
