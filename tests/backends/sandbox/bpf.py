"""The kernel's interpreter of system call filters, as far as ours need it."""

import functools
import struct

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


@functools.cache
def _instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return [(code, if_true, if_false, value) for code, if_true, if_false, value in struct.iter_unpack("HBBI", program)]


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> tuple[int, int]:
    """What the filter says of a call, and after how many instructions."""
    given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *given)
    instructions = _instructions(program)
    accumulator = at = steps = 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        steps += 1
        match code:
            case 0x06:
                return value, steps
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}
                at += if_true if holds[code] else if_false
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")
