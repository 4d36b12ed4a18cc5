"""A rank that fails ends all others, and a message names it."""

import socket
import subprocess
import time

import pytest

SECONDS = 30
# Training without an end, in whose step 3 the last rank fails in some way.
TRAIN = """
import os, signal, sys
import numpy as np
import fastlayers as fl
from fastlayers import data, distributed, nn


class Rows(data.Dataset):
    def __len__(self):
        return 1 << 20

    def __getitem__(self, index):
        if way == "loader" and index == 7:
            raise OSError("no such row")
        return np.ones(4, np.float32)


class Listener:
    def begin(self, leaves):
        return True

    def ready(self, leaf, gradient):
        raise ArithmeticError("no such gradient")

    def finish(self):
        pass


def fail():
    if way == "raise":
        raise ValueError("no such image")
    if way == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "exit":
        sys.exit(3)
    if way == "backward":
        fl.autograd.listen(listener)


distributed.init()
last = distributed.rank() == distributed.world_size() - 1
way, listener = sys.argv[1] if last else "", Listener()
model = distributed.DistributedDataParallel(nn.Linear(4, 2))
optimizer = fl.optim.SGD(model.parameters(), lr=0.1)
for step, x in enumerate(data.DataLoader(Rows(), batch_size=2)):
    if step == 3:
        if distributed.rank() == 0:
            print("step 3", flush=True)
        if way == "end":
            break
        fail()
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
"""
RAISED = "fastlayers: rank {last} of {number} on {host} failed, so all ranks end: "
GONE = ": RuntimeError: distributed: rank {last} must make the calls"
# How the last rank fails, the number of ranks, and what is said of it.
FAILURES = [
    ("raise", 2, RAISED + "ValueError: no such image\n"),
    ("raise", 3, RAISED + "ValueError: no such image\n"),
    ("backward", 2, RAISED + "ArithmeticError: no such gradient\n"),
    ("loader", 2, RAISED + "OSError: no such row\n"),
    ("interrupt", 2, RAISED + "KeyboardInterrupt\n"),
    ("exit", 3, GONE),
    ("end", 2, GONE),
]


def outcome(process):
    """Status, output and errors of a program all of whose ranks end in time."""
    limit = time.monotonic() + SECONDS
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    while left := still_running(process.args[-2]):
        assert time.monotonic() < limit, left
        time.sleep(0.1)
    return process.returncode, out, err


def still_running(program):
    """Lines of ``ps`` of processes with the program, which is in a folder of its own."""
    lines = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True).stdout
    return [line for line in lines.splitlines() if program in line]


@pytest.mark.parametrize("way, number, message", FAILURES, ids=[f"{w}-{n}" for w, n, _ in FAILURES])
def test_a_rank_that_fails_ends_all(ranks, way, number, message):
    status, out, err = outcome(ranks.start(number, TRAIN, way))
    assert status != 0
    assert "step 3" in out
    names = {"last": number - 1, "number": number, "host": socket.gethostname()}
    assert message.format(**names) in err, err
    blamed = {line.split(" on ")[0] for line in err.splitlines() if "so all ranks end" in line}
    assert message is GONE or blamed == {f"fastlayers: rank {number - 1} of {number}"}


@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_rank_ends_all(ranks, number):
    status, out, err = outcome(ranks.start(number, TRAIN, "kill"))
    assert status != 0
    assert "step 3" in out
    assert_killed(out, err, number - 1)


def assert_killed(out, err, rank):
    """The launcher says which rank was killed; MPICH's names the process and its host alone."""
    if "BAD TERMINATION" in out:
        assert "PID" in out and "EXIT CODE: 9" in out
    else:
        assert f"process rank {rank} " in err and "signal 9 (Killed)" in err, err
