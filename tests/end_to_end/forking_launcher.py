"""Runs the scripts again and again in processes of their own that need not import anything: forks of this one.

Lines of JSON on standard input, answers on standard output. `{"arguments": [script, ...], "directory": ...,
"output": ..., "batches": ..., "environment": {...}, "seconds_per_write": ...}` starts a script, in a group of
processes of its own, and answers its process id; `{"wait": id}` answers how it ended, as `subprocess` numbers it,
`"wait"` how the newest did, and `{"poll": id}` null as long as it runs. The script's output goes to the file `output`;
the file `batches` grows by one byte with every training batch that begins. `seconds_per_write` is how slow the disk is
while a checkpoint is written.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
import traceback

import torch

from ddim.command import evaluate, train  # noqa: F401 - what the forks then have
from ddim.training import checkpoint_io
from ddim.training.module import DenoisingModule

# A pool of threads would not survive the fork.
torch.set_num_threads(1)


def slow_down(seconds: float) -> None:
    write = checkpoint_io._Stream.write

    def slow(stream, data):
        time.sleep(seconds)
        return write(stream, data)

    checkpoint_io._Stream.write = slow


def count_batches(path: str) -> None:
    batches = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    begin = DenoisingModule.on_train_batch_start

    def counting(module, batch, batch_idx):
        os.write(batches, b".")
        return begin(module, batch, batch_idx)

    DenoisingModule.on_train_batch_start = counting


def run(order: dict) -> int:
    os.setpgrp()
    output = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(order["directory"])
    os.environ.update(order["environment"])
    if order.get("batches"):
        count_batches(order["batches"])
    if order.get("seconds_per_write"):
        slow_down(order["seconds_per_write"])
    sys.argv = order["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


ended: dict[int, int] = {}


def state(process: int, options: int) -> int | None:
    """How a process ended; None if it has not, which only os.WNOHANG does not wait for."""
    if process not in ended:
        found, status = os.waitpid(process, options)
        if not found:
            return None
        ended[process] = os.waitstatus_to_exitcode(status)
    return ended[process]


process = 0
for line in sys.stdin:
    message = json.loads(line)
    if message == "wait":
        message = {"wait": process}
    if "wait" in message or "poll" in message:
        answer = state(message["wait"], 0) if "wait" in message else state(message["poll"], os.WNOHANG)
        print(json.dumps(answer), flush=True)
        continue
    process = os.fork()
    if process == 0:
        status = run(message)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(process, flush=True)
