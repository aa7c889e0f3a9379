"""A kernel forked in advance is a kernel as papermill starts one: it answers, stops, and dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
from waiting import LONG_SECONDS

from studylib.running.forked_kernel import own_words

ROOT = Path(__file__).parents[1]

USE = """
import os, signal, sys
from studylib.running import forked_kernel
from studylib.running.forked_kernel import become_kernel, fork_kernel, kernel_options

orders = fork_kernel()
if orders is not None:
    become_kernel(orders)
    sys.exit()
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

def execute(*cells, waiting, **options):
    pid = forked_kernel._waiting.child.pid if waiting else None
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_name="python3", **options)
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        return type(error).__name__, getattr(error, "ename", ""), pid, None
    return "", "", pid, int(notebook.cells[0].outputs[0].text)
"""

ANSWERS = """
os.environ["FROM_THE_RUN"] = "7"
code = "import os, sys; print(os.getpid() if os.environ['FROM_THE_RUN'] == '7' else 0)"
error, _, pid, told = execute(code, waiting=True, **kernel_options())
assert not error and told == pid, (error, pid, told)
assert kernel_options() == {}, "it is given once"
error, _, _, told = execute(code, waiting=False)
assert not error and told not in (pid, os.getpid()), "the next notebook's is started anew"
"""

STOPS = """
code = "import os, signal, time; os.killpg(os.getpgid(0), signal.SIGINT); time.sleep(60)"
error, name, *_ = execute(code, waiting=True, **kernel_options())
assert (error, name) == ("CellExecutionError", "KeyboardInterrupt"), (error, name)
"""

DIES = """
code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
error, *_ = execute(code, waiting=True, **kernel_options())
assert error == "DeadKernelError", error
"""

LEFT = "print(forked_kernel._waiting.child.pid, flush=True); os._exit(3)"


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", USE + code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=LONG_SECONDS,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_waiting_kernel_runs_the_notebook_and_the_next_one_has_a_new_kernel():
    code, _, errors = run(ANSWERS)
    assert code == 0, errors


def test_interrupt_of_its_group_stops_a_cell():
    code, _, errors = run(STOPS)
    assert code == 0, errors


def test_killed_kernel_is_seen_to_be_dead():
    code, _, errors = run(DIES)
    assert code == 0, errors


def test_kernel_that_nobody_needs_ends_with_its_process():
    code, out, _ = run(LEFT)  # comes back when the pipe that both hold is closed
    assert code == 3
    try:
        kernel = psutil.Process(int(out))
        kernel.wait(timeout=LONG_SECONDS)  # what it wrote to is closed a moment before it is gone
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        assert kernel.status() == psutil.STATUS_ZOMBIE


def test_kernel_of_another_interpreter_is_not_the_forked_one():
    words = ["-m", "ipykernel_launcher", "-f", "file", "--HistoryManager.hist_file=:memory:"]
    assert own_words([sys.executable, *words]) == words[2:]
    assert own_words(["another-python", *words]) is None
    assert own_words([sys.executable, "-m", "another_kernel", "-f", "file"]) is None
