"""Becomes a stage: `python -I -S launcher.py PARENT_PID PROGRAM ARGUMENT...`.

A process of its own, and not a `preexec_fn`, because running Python between fork and exec is unsafe in a process with
threads, and gRPC has many. It asks the kernel to kill the stage when the service dies, offers the stage to the
out-of-memory killer before the service, turns core dumps off (a stage's memory is gigabytes), and replaces itself with
the program.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, program = int(arguments[0]), arguments[1:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - no import that this process can do without
            file.write("800")
    except OSError:
        pass
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
