import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_plans_are_those_that_are_known():
    """What changes with intent is written anew by `python tests/plans.py > tests/ops/plans.txt`."""
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "plans.py")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    known = Path(__file__).with_name("plans.txt").read_text()
    assert done.stdout.splitlines() == known.splitlines()
