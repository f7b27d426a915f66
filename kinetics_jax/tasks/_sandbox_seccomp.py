"""Which system calls a judged program may make: a list of what computing needs, everything else refused.

The filter is Berkeley packet filter code, written out by hand because libseccomp is not part of Python. A program
computes, reads and writes its own files and starts threads. It starts no process (so its address space is all its
memory, and nothing outlives it), opens no network socket, signals nobody but itself, and reaches no part of the kernel
that a program needs no more than once in its life (mount, ptrace, bpf, keys, io_uring, namespaces, ...).
Loaded inside the sandbox.
"""

import ctypes
import os

# name, number on x86-64, number on aarch64 ("-": that machine has none)
_ALLOWED = """
read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68; preadv 295 69; pwritev 296 70;
preadv2 327 286; pwritev2 328 287; close 3 57; close_range 436 436; lseek 8 62; dup 32 23; dup2 33 -; dup3 292 24;
fcntl 72 25; flock 73 32; sendfile 40 71; copy_file_range 326 285; pipe 22 -; pipe2 293 59; eventfd2 290 19;
open 2 -; openat 257 56; creat 85 -; stat 4 -; fstat 5 80; lstat 6 -; newfstatat 262 79; statx 332 291; access 21 -;
faccessat 269 48; faccessat2 439 439; readlink 89 -; readlinkat 267 78; getdents 78 -; getdents64 217 61;
getcwd 79 17; chdir 80 49; fchdir 81 50; statfs 137 43; fstatfs 138 44;
mkdir 83 -; mkdirat 258 34; rmdir 84 -; unlink 87 -; unlinkat 263 35; rename 82 -; renameat 264 38; renameat2 316 276;
truncate 76 45; ftruncate 77 46; fsync 74 82; fdatasync 75 83; fadvise64 221 223; chmod 90 -; fchmod 91 52;
fchmodat 268 53; umask 95 166; utimensat 280 88;
mmap 9 222; mprotect 10 226; munmap 11 215; mremap 25 216; msync 26 227; mincore 27 232; madvise 28 233; brk 12 214;
membarrier 324 283;
futex 202 98; futex_waitv 449 449; set_robust_list 273 99; get_robust_list 274 100; rseq 334 293;
set_tid_address 218 96; sched_yield 24 124; sched_getaffinity 204 123; sched_getparam 143 121;
sched_getscheduler 145 120; sched_get_priority_max 146 125; sched_get_priority_min 147 126; getcpu 309 168;
rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigpending 127 136; rt_sigtimedwait 128 137;
rt_sigsuspend 130 133; sigaltstack 131 132; pause 34 -; alarm 37 -; setitimer 38 103; getitimer 36 102;
restart_syscall 219 128;
poll 7 -; ppoll 271 73; select 23 -; pselect6 270 72; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -;
epoll_pwait 281 22; epoll_pwait2 441 441; socketpair 53 199; sendto 44 206; recvfrom 45 207; shutdown 48 210;
getsockname 51 204; getsockopt 55 209;
nanosleep 35 101; clock_nanosleep 230 115; clock_gettime 228 113; clock_getres 229 114; gettimeofday 96 169;
time 201 -; times 100 153; getrusage 98 165; sysinfo 99 179; uname 63 160; getrandom 318 278;
getpid 39 172; getppid 110 173; gettid 186 178; getpgrp 111 -; getpgid 121 155; getsid 124 156; getuid 102 174;
geteuid 107 175; getgid 104 176; getegid 108 177; getresuid 118 148; getresgid 120 150; getgroups 115 158;
getrlimit 97 163; setrlimit 160 164; getpriority 140 141; capget 125 90; exit 60 93; exit_group 231 94; wait4 61 260;
waitid 247 95
"""
# Allowed with some arguments only; see `_checked`.
_CHECKED = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "ioctl": (16, 29),
}
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's name of the instruction set, and its column above."""

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _ABSENT = 0x00050000 | 1, 0x00050000 | 38  # EPERM; ENOSYS, after which libc takes the older call
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, its size, bytes waiting, flags
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38

_Instruction = tuple[int, int, int, int]


def filters_machine(machine: str) -> bool:
    """Say whether the filter knows the system calls of a machine (`platform.machine()`)."""
    return machine in _MACHINES


def filter_code(machine: str, pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter as instructions (code, jump if true, jump if false, constant).

    Args:
        machine: "x86_64" or "aarch64".
        pid: The process it is for, which may signal itself.
    """
    arch, column = _MACHINES[machine]
    code: list[_Instruction] = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, arch),  # another instruction set has other numbers
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    for entry in _ALLOWED.split(";"):
        number = entry.split()[1 + column]
        if number != "-":
            code += [(_JUMP_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, _ALLOW)]
    for name, numbers in _CHECKED.items():
        body = _checked(name, pid)
        code += [(_JUMP_EQUAL, 0, len(body), numbers[column]), *body]
    return [*code, (_RETURN, 0, 0, _REFUSE)]


def _argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)


def _checked(name: str, pid: int) -> list[_Instruction]:
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    if name == "clone":  # a thread, in no new namespace; never a process
        return [
            _argument(0),
            (_JUMP_ANY_BIT, 2, 0, _CLONE_NEW),
            (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD),
            allow,
            refuse,
        ]
    if name == "clone3":  # its flags lie in memory, which a filter cannot read
        return [(_RETURN, 0, 0, _ABSENT)]
    if name == "ioctl":
        return [_argument(1), *(line for number in _IOCTLS for line in ((_JUMP_EQUAL, 0, 1, number), allow)), refuse]
    own = 0 if name == "prlimit64" else pid
    return [_argument(0), (_JUMP_EQUAL, 0, 1, own), allow, refuse]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def close_system_calls(libc: ctypes.CDLL) -> None:
    """Apply the filter to this process for good.

    Raises:
        OSError: If the kernel refuses it.
    """
    code = filter_code(os.uname().machine, os.getpid())
    packed = b"".join(
        op.to_bytes(2, "little") + bytes((true, false)) + constant.to_bytes(4, "little")
        for op, true, false, constant in code
    )
    program = _Program(len(code), packed)
    for option, value, address in ((_PR_SET_NO_NEW_PRIVS, 1, None), (_PR_SET_SECCOMP, 2, ctypes.byref(program))):
        if libc.prctl(option, ctypes.c_ulong(value), address, None, None):
            raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")
