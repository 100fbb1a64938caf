"""Attacks on the limits, on what is left behind, and on the protocol of results."""

from tests.security.attack import Attack, failed, first_of, gives, handler, result_list

_CHILDREN = """import os, time
pids = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        x = bytearray(200 << 20)
        time.sleep(5)
        os._exit(0)
    pids.append(pid)
return [os.waitpid(pid, 0)[1] for pid in pids]"""

_FORK_BOMB = """import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0: time.sleep(60); os._exit(0)
        n += 1
except OSError as e: return [n, str(e)]
return [n, 'no limit']"""

_THREAD_BOMB = """import threading, time
n = 0
try:
    while n < 500: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
except BaseException as e: return [n, str(e)]
return [n, 'no limit']"""


def resources() -> list[Attack]:
    memory = failed("memory limit", "MemoryError")
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
            wall_seconds=30,
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
            handler(_CHILDREN),
            lambda answer: memory(answer) or 9 in result_list(answer),
            wall_seconds=20,
        ),
        Attack("fork bomb", handler(_FORK_BOMB), lambda answer: 0 < first_of(answer) < 40, wall_seconds=20),
        Attack("thread bomb", handler(_THREAD_BOMB), lambda answer: 0 < first_of(answer) < 40, wall_seconds=20),
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


def leftovers() -> list[Attack]:
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


def protocol() -> list[Attack]:
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
