"""A notebook's kernel that is forked from a process with everything imported, not started anew.

Threads must not exist where a process forks, and papermill's sockets bring some. So the kernel's
process is forked first and waits at a pipe; what papermill would have started is then told to it.

Not covered: where the imports come from (studylib.running.stand_by). Without a waiting kernel a
notebook's is started as ever.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LAUNCHER = "ipykernel_launcher"  # the module that a kernel of this interpreter is started by


class Child:
    """A forked child, as jupyter_client wants to see a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the child lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked kernel", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WaitingKernel:
    """The kernel's process before it is one, seen from the process that will need it."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.child, self._pipe = Child(pid), pipe

    def begin(self, words: list[str], environ: dict[str, str], cwd: str) -> Child:
        """Let it become the kernel that `python -m ipykernel_launcher WORDS…` would be."""
        with os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(json.dumps([words, environ, cwd]).encode())
        return self.child


def end_at_once(work: Callable[[], object]) -> NoReturn:
    """Do a fork's work and end as Python would, but leave its memory to the system: to free what
    it shares with its parent it would first have to copy that, page by page."""
    code: object = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


_waiting: WaitingKernel | None = None


def fork_kernel() -> int | None:
    """Fork this process's kernel. In the kernel: the end of the pipe to read orders from."""
    global _waiting
    orders, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(pipe)
        os.setsid()  # an interrupt of the notebook is meant for its process group alone
        return orders
    os.close(orders)
    _waiting = WaitingKernel(pid, pipe)
    return None


def become_kernel(orders: int) -> None:
    """Wait for the orders, then be the kernel, which ends when it is shut down.

    Returns where the process that was to need it has ended without.
    """
    parent = os.getppid()
    with os.fdopen(orders, "rb") as pipe:
        told = pipe.read()
    if not told:
        return
    words, environ, cwd = json.loads(told)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    if sys.path[0] in ("", cwd):
        del sys.path[0]  # as the launcher does; the shell puts it back
    sys.argv = [LAUNCHER, *words]
    from ipykernel.kernelapp import IPKernelApp

    end_at_once(lambda: IPKernelApp.launch_instance(parent_handle=parent))


def kernel_options() -> dict[str, Any]:
    """What papermill is told to take the waiting kernel; nothing where none waits."""
    return {} if _waiting is None else {"kernel_manager_class": manager_class()}


def manager_class() -> type:
    """jupyter_client's manager, whose kernel is the waiting one. (A function: the CLI is light.)"""
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class ForkedProvisioner(LocalProvisioner):
        """Gives the waiting kernel to its first caller, and starts anew for any other."""

        async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
            global _waiting
            kernel, _waiting = _waiting, None
            words = own_words(cmd)
            if kernel is None or words is None:
                return await super().launch_kernel(cmd, **kwargs)
            cwd = str(kwargs.get("cwd") or Path.cwd())
            child = kernel.begin(words, kwargs.get("env") or dict(os.environ), cwd)
            self.process = child  # type: ignore[assignment]
            self.pid = self.pgid = child.pid
            self.cwd = cwd
            return self.connection_info

    class ForkedKernelManager(AsyncKernelManager):
        async def _async_pre_start_kernel(self, **kwargs: Any) -> Any:
            self.kernel_id = self.kernel_id or str(uuid.uuid4())
            if self.provisioner is None:
                self.provisioner = ForkedProvisioner(
                    kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
                )
            return await super()._async_pre_start_kernel(**kwargs)

    return ForkedKernelManager


def own_words(command: list[str]) -> list[str] | None:
    """The kernel's own words of a command; None where it is not a kernel of this interpreter."""
    if command[:1] != [sys.executable] or LAUNCHER not in command:
        return None
    return command[command.index(LAUNCHER) + 1 :]
