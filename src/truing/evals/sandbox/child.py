"""Runs in the child: give up every right, then run the program that stands on standard input, then say how it ended.

Started as `python -I -S -B child.py`, so nothing of the package, the site or the environment is here; only the standard library.
Order matters: limits, then Landlock (files), then seccomp (system calls), then the program.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
RET_ALLOW, RET_EPERM, RET_KILL = 0x7FFF0000, 0x00050001, 0x80000000
LD_WORD, JEQ, RET = 0x20, 0x15, 0x06
"""Berkeley packet filter: load a word of the call's description, jump if equal, return."""
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Landlock ABI from which on -> all rights over files that it knows."""

# Reading what is open or may be opened, memory, time, waiting, and one's own name. Nothing that makes a socket, process, thread,
# signal, file or link, or changes one; nor ioctl, io_uring, prctl or anything that raises a limit.
CALLS = {
    "x86_64": (
        0xC000003E,
        "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 17 19 20 21 23 24 25 28 35 39 60 63 79 89 96 97 98 100 102 104 107 108 131 186 201 "
        "202 204 217 221 228 229 230 231 257 262 267 269 273 318 324 332 334 439",
    ),
    "aarch64": (
        0xC00000B7,
        "17 48 56 57 61 62 63 64 65 66 67 73 78 79 80 93 94 98 99 101 113 114 115 123 124 132 134 135 139 153 160 163 165 169 172 "
        "174 175 176 177 178 214 215 216 222 223 226 233 278 283 291 293 439",
    ),
}
"""Machine -> its number in seccomp, and the system calls that stay."""

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818  (it is no error of the program)
    """The kernel would not take a right away."""


def kernel(number: int, *arguments: Any) -> int:
    """One system call. Raises Refused with its error."""
    found = int(libc.syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise Refused(os.strerror(ctypes.get_errno()))
    return found


def control(option: int, value: int, pointer: Any = None) -> None:
    """prctl. Raises Refused with its error."""
    if libc.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise Refused(os.strerror(ctypes.get_errno()))


def limit(cpu: int, memory: int) -> None:
    """Processor time, memory, files."""
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    for kind, values in limits.items():
        resource.setrlimit(kind, values)


def close_files(readable: list[str]) -> None:
    """Landlock: reading beneath these folders, and no other right over any file (and, where it can, no TCP)."""
    try:
        abi = kernel(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except Refused as error:
        raise Refused(f"the kernel has no Landlock ({error})") from None
    rights = FILE_RIGHTS[max(version for version in FILE_RIGHTS if version <= abi)]
    attributes = struct.pack("QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = kernel(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    for folder in readable:
        if not os.path.isdir(folder):
            continue
        opened = os.open(folder, os.O_PATH)
        kernel(LANDLOCK_ADD, ctypes.c_int(ruleset), 1, struct.pack("=Qi", READ_FILE | READ_DIR, opened), ctypes.c_uint32(0))
        os.close(opened)
    kernel(LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def close_calls() -> None:
    """seccomp: the calls of the table stay, every other one fails with EPERM; another machine's calls end the process."""
    machine = platform.machine()
    if machine not in CALLS:
        raise Refused(f"no list of system calls for {machine}")
    number, calls = CALLS[machine]
    program = [(LD_WORD, 0, 0, 4), (JEQ, 1, 0, number), (RET, 0, 0, RET_KILL), (LD_WORD, 0, 0, 0)]
    for call in map(int, calls.split()):
        program += [(JEQ, 0, 1, call), (RET, 0, 0, RET_ALLOW)]
    program.append((RET, 0, 0, RET_EPERM))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    try:
        control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)
    except Refused as error:
        raise Refused(f"the kernel takes no seccomp filter ({error})") from None


def confine(order: dict[str, Any]) -> None:
    """Everything is given up when this returns."""
    control(PR_SET_PDEATHSIG, 9)
    control(PR_SET_DUMPABLE, 0)
    control(PR_SET_NO_NEW_PRIVS, 1)
    limit(order["cpu"], order["memory"])
    close_files(order["read"])
    close_calls()


def main() -> None:
    """Read the order, obey it, report."""
    order = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    answer = {"token": order["token"], "passed": False, "detail": ""}
    try:
        confine(order)
        exec(compile(order["program"], "<program>", "exec"), {"__name__": "__main__"})
        answer["passed"] = True
    except BaseException as error:  # SystemExit too: a program that leaves early has not passed
        answer["detail"] = f"{type(error).__name__}: {error}"[:500] if not isinstance(error, Refused) else str(error)
    os.write(report, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
