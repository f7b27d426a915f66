"""Programs that try to get out: each is contained, its verdict is right, and the sandbox is as good as before.

Every attack runs against the whole sandbox and, where that says something, against the namespaces alone, with the
filter of system calls taken away. None of them does harm where it succeeds: it asks for what changes nothing, or tells
a refusal (EPERM) from the complaint about an argument that only the privileged hear. On a machine that isolates
nothing, the fixtures assert the refusal instead.
"""

import os
import socket
from pathlib import Path

import pytest

from kinetics_jax.tasks import ProgramRun, Sandbox


def told(run: ProgramRun) -> tuple[str, str]:
    return run.outcome, run.output


def attempts(*statements: str, setup: str = "") -> str:
    """Return a program that tries every statement and prints those that worked."""
    tries = [
        f"try:\n    {line}\n    print('escaped:', {line!r})\nexcept (OSError, RuntimeError): pass"
        for line in statements
    ]
    return "\n".join(["import ctypes, mmap, os, shutil, socket, sys, threading, time", setup, *tries, "print('end')"])


def test_no_network(either: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0kinetics-test")
        abstract.listen()
        port = server.getsockname()[1]
        program = attempts(
            f"socket.create_connection(('127.0.0.1', {port}), 0.2)",
            f"socket.create_connection(('localhost', {port}), 0.2)",
            "socket.create_connection(('192.0.2.1', 80), 0.2)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            "socket.socket(socket.AF_UNIX).connect('\\0kinetics-test')",
            "socket.getaddrinfo('example.org', 80)",
        )
        assert told(either.run(program)) == ("ok", "end\n")
        for listener in (server, abstract):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_no_raw_sockets_and_no_sockets_at_all_under_the_filter(whole: Sandbox):
    families = ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG")
    program = attempts(*(f"socket.socket(getattr(socket, {family!r}, 1), socket.SOCK_RAW)" for family in families))
    assert told(whole.run(program)) == ("ok", "end\n")


def test_no_files_of_the_host(either: Sandbox, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    home, here = Path.home(), Path(__file__).resolve()
    paths = ["/etc/passwd", "/etc/shadow", "/etc/hosts", str(secret), str(here), "/proc/self/environ", "/proc/1/root",
             "/sys/kernel", "/var/log", "/home", "/run", "/boot", "/dev/sda", "/dev/vda", "/dev/mem"]  # fmt: skip
    paths += [str(home / name) for name in (".ssh", ".bashrc", ".cache", ".gitconfig", ".netrc")]
    program = attempts(*(f"os.stat({path!r})" for path in paths), *(f"open({path!r}).read()" for path in paths))
    assert told(either.run(program)) == ("ok", "end\n")
    seen = either.run("import os\nprint(sorted(os.listdir('/')), os.listdir('/dev'), os.listdir('/tmp'))").output
    top = {Path(path).parts[1] for path in (os.__file__, "/usr", "/lib", "/lib64", "/nix", "/dev", "/tmp", str(here))}
    assert set(eval(seen.split("]")[0] + "]")) <= top
    assert seen.endswith("['null'] []\n")


def test_installed_packages_are_not_there(either: Sandbox):
    modules = ("kinetics_jax", "numpy", "jax", "pytest", "pip")
    program = "\n".join(f"try:\n    import {name}\n    print({name!r})\nexcept ImportError: pass" for name in modules)
    assert told(either.run(f"{program}\nimport sys\nprint([m for m in sys.modules if 'kinetics' in m])")) == (
        "ok",
        "[]\n",
    )
    count = (
        "import glob, os\n"
        "print(sum(len(os.listdir(f)) for f in glob.glob(os.path.dirname(os.__file__) + '/*-packages')))"
    )
    assert told(either.run(count)) == ("ok", "0\n")


def test_packages_that_are_given_are_read_only(whole: Sandbox, tmp_path: Path):
    (tmp_path / "gift.py").write_text("value = 7")
    tmp_path.chmod(0o755)  # as root, a program runs as a user that owns nothing
    with Sandbox(isolation=whole.isolation, packages=[tmp_path], limits=whole.limits) as box:
        program = f"import gift\nprint(gift.value)\nopen({str(tmp_path / 'new')!r}, 'w')"
        run = box.run(program)
    assert run.output == "7\n"
    assert run.outcome == "runtime error"
    assert os.listdir(tmp_path) == ["gift.py"]


def test_no_writing_outside_the_temporary_folder(either: Sandbox):
    folders = ["/", "/usr", "/usr/lib", "/lib", "/dev", str(Path(os.__file__).parent), "/tmp/..", "/usr/lib/.."]
    program = attempts(
        *(f"open({folder!r} + '/kinetics-attack', 'w')" for folder in folders),
        *(f"os.mkdir({folder!r} + '/kinetics-attack')" for folder in folders),
        "os.chmod(os.__file__, os.stat(os.__file__).st_mode & 0o7777)",
        "os.open(os.__file__, os.O_WRONLY)",
        "os.rename(os.__file__, os.__file__)",
        "os.link(os.__file__, '/tmp/os.py')",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0))",
        "os.chroot('/tmp')",
        "refused(os.rmdir, os.path.dirname(os.__file__))",
        "refused(os.unlink, os.path.dirname(os.__file__))",
        setup=(
            "def refused(attempt, path):\n"
            "    try: attempt(path)\n"
            "    except OSError as error:\n"
            "        if error.errno in (1, 13, 30): raise\n"  # neither ENOTEMPTY nor EISDIR, which a writer is told
        ),
    )
    assert told(either.run(program)) == ("ok", "end\n")
    assert not any(Path(folder, "kinetics-attack").exists() for folder in folders)


def test_every_mount_says_so_itself(either: Sandbox):
    """Read-only or not executable by mount, not only because files belong to somebody else."""
    program = (
        "import os\n"
        "read_only = [os.statvfs(f).f_flag & os.ST_RDONLY for f in ('/', '/usr/lib', os.path.dirname(os.__file__))]\n"
        "temporary = os.statvfs('/tmp').f_flag\n"
        "print(all(read_only), temporary & os.ST_RDONLY, bool(temporary & os.ST_NOSUID & os.statvfs('/').f_flag))"
    )
    assert told(either.run(program)) == ("ok", "True 0 True\n")


def test_nothing_in_the_temporary_folder_can_be_executed(either: Sandbox):
    if either.isolation == "bubblewrap":
        pytest.skip("bubblewrap mounts no folder without execution; the program is itself code that runs")
    program = attempts(
        "os.execv('/tmp/x', ['x'])",
        "ctypes.CDLL('/tmp/x')",
        "mmap.mmap(os.open('/tmp/x', os.O_RDWR), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC)",
        setup="import _ctypes\nshutil.copyfile(_ctypes.__file__, '/tmp/x')\nos.chmod('/tmp/x', 0o755)",
    )
    assert told(either.run(program)) == ("ok", "end\n")


def test_a_fork_bomb_starts_nothing(whole: Sandbox):
    program = attempts(
        "os.fork()",
        "os.forkpty()",
        "os.posix_spawn('/bin/sh', ['sh'], {})",
        "__import__('subprocess').Popen(['/bin/true'])",
        "__import__('multiprocessing').get_context('fork').Process(target=print).start()",
        "os.execv(sys.executable or '/x', ['python'])",
    )
    assert told(whole.run(program)) == ("ok", "end\n")


def test_nobody_else_can_be_killed(either: Sandbox):
    program = attempts(
        "kill_first()",
        f"find_host({os.getpid()})",
        f"find_host({os.getppid()})",
        setup=(
            "def kill_first():\n"
            "    assert os.getppid() == 1\n"  # nobody but the sandbox has it for a parent
            "    os.kill(1, 9)\n    time.sleep(0.02)\n"
            "def find_host(pid):\n"
            "    if pid < 1000: raise OSError('a small number, which may be taken in here as well')\n"
            "    os.kill(pid, 0)\n"
        ),
    )
    # Pid 1 of a namespace takes no signal from inside it: without the filter the call succeeds and does nothing.
    lines = either.run(program).output.splitlines()
    assert lines[-1] == "end"
    assert not any("find_host" in line for line in lines)
    if either.filter_calls:
        assert lines == ["end"]


def test_everyone_in_the_sandbox_can_be_killed_and_nobody_out_of_it(bare: Sandbox):
    program = (
        "import os, time\nassert os.getppid() == 1 and not os.path.exists('/proc')\n"
        "child = os.fork()\nif not child: time.sleep(9)\n"
        "os.kill(-1, 9)\nprint(os.waitpid(child, 0)[1])"
    )
    assert told(bare.run(program)) == ("ok", "9\n")


# By their numbers on x86-64 and aarch64; all with arguments that would do no harm.
DANGEROUS = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "memfd_create": (319, 279), "personality": (135, 92), "setuid": (105, 146), "setsid": (112, 157),
    "prctl": (157, 167), "seccomp": (317, 277), "init_module": (175, 105), "finit_module": (313, 273),
    "mknodat": (259, 33), "symlinkat": (266, 36), "linkat": (265, 37), "sched_setaffinity": (203, 122),
    "shmget": (29, 194), "msgget": (68, 186), "mq_open": (240, 180), "fanotify_init": (300, 262),
    "move_mount": (429, 429), "fsopen": (430, 430), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "quotactl": (179, 60), "syslog": (103, 116), "acct": (163, 89), "settimeofday": (164, 170),
    "landlock_create_ruleset": (444, 444), "execve": (59, 221), "execveat": (322, 281), "vmsplice": (278, 75),
    "clone3": (435, 435), "socket": (41, 198), "tkill": (200, 130), "a number that no kernel has yet": (4999, 4999),
}  # fmt: skip


def test_system_calls_beyond_computing_are_refused(whole: Sandbox):
    column = 0 if os.uname().machine == "x86_64" else 1
    table = {name: numbers[column] for name, numbers in DANGEROUS.items()}
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {table!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        "    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)\n"
        "    if result != -1 or ctypes.get_errno() not in (1, 38): print(name, result, ctypes.get_errno())\n"
        "for flags in (17, 0x10000000 | 17, 0x20000000 | 17, 0x7E020000 | 17, 0x4111):\n"
        f"    result = libc.syscall(ctypes.c_long({(56, 220)[column]}), ctypes.c_long(flags), 0, 0, 0, 0)\n"
        "    if result != -1 or ctypes.get_errno() != 1: print('clone', hex(flags), result)\n"
        f"result = libc.syscall(ctypes.c_long({(302, 261)[column]}), 1, 0, None, None)\n"
        "if result != -1 or ctypes.get_errno() != 1: print('prlimit of pid 1', result)\n"
        "if libc.ioctl(0, ctypes.c_ulong(0x5412), b'x') != -1: print('TIOCSTI')\n"
        "print('end')"
    )
    assert told(whole.run(program)) == ("ok", "end\n")


def test_another_instruction_set_is_no_way_around_the_filter(whole: Sandbox):
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is a part of x86-64")
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "x32 = 0x40000000\n"
        "print([libc.syscall(ctypes.c_long(x32 + n), *[ctypes.c_long(0)] * 6) for n in (41, 57, 165, 272)])"
    )
    assert told(whole.run(program)) == ("ok", "[-1, -1, -1, -1]\n")


def test_without_the_filter_there_is_still_no_privilege(bare: Sandbox):
    program = attempts(
        "check(libc.mount(b'none', b'/tmp', b'no-such-file-system', 0, b''))",
        "check(libc.umount2(os.path.dirname(ctypes.__file__).encode(), 2))",  # no mount point
        "check(libc.unshare(0x00020000))",
        "check(libc.ptrace(16, 1, None, None)) if os.getppid() == 1 else None",
        "os.setuid(0) if os.getuid() else check(-1)",
        "check(libc.sethostname(b'', 1000))",  # longer than any
        "check(libc.swapoff(b'/tmp/none'))",
        setup=(
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "def check(result):\n    if result and ctypes.get_errno() in (1, 13): raise OSError('refused')\n"
        ),
    )
    assert told(bare.run(program)) == ("ok", "end\n")


def test_the_environment_is_empty(either: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KINETICS_SECRET", "secret")
    program = (
        "import ctypes, os, sys\n"
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
        "print(dict(os.environ), environ[0] if environ else None, ctypes.CDLL(None).getenv(b'KINETICS_SECRET'))\n"
    )
    with Sandbox(isolation=either.isolation, limits=either.limits) as fresh:
        assert told(fresh.run(program)) == ("ok", "{} None 0\n")


def test_only_three_files_are_open_and_none_is_the_judges(whole: Sandbox):
    program = (
        "import os, stat\n"
        "for n in range(256):\n"
        "    try: print(n, stat.S_ISREG(os.fstat(n).st_mode))\n"
        "    except OSError: pass\n"
    )
    assert told(whole.run(program)) == ("ok", "0 True\n1 True\n2 True\n3 True\n")
    tamper = attempts("os.ftruncate(0, 0)", "os.pwrite(0, b'x', 0)")
    assert told(whole.run(f"{tamper}\nprint(input())", "input")) == ("ok", "end\ninput\n")
