"""Runs programs as several MPI processes, as many as are asked for on however few cores."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Beside the interpreter, as the runtime's wheels put it there, or on the path.
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")

# Open MPI: containers run as root, and have fewer cores than ranks; other launchers ignore it.
# PRTE's temporary folder must have a short name, since sockets are in it.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
LINES = {"PYTHONUNBUFFERED": ""}  # whose parts of lines come between those of other ranks
SECONDS = 120


class Ranks:
    """Runs a program, given as text, on some ranks, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, number, program, *arguments, hosts=([], {}), **variables):
        """Start it, on this host or others (`namespaces.Hosts.launch`); a Popen of ``mpiexec``."""
        path = self.folder / "program.py"
        path.write_text(textwrap.dedent(program))
        command = [sys.executable, str(path)] if program.strip() else [sys.executable]
        return subprocess.Popen(
            [*hosts[0], MPIEXEC, "-n", str(number), *command, *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | OPEN_MPI | LINES | hosts[1] | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, number, program, *arguments, **options):
        """Run it to its end, which must be a good one; what it printed."""
        process = self.start(number, program, *arguments, **options)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, err
        return out


@pytest.fixture
def ranks(tmp_path):
    """``ranks(2, program, *arguments)`` runs a Python program on 2 ranks and gives its output."""
    pytest.importorskip("mpi4py", reason="pip install 'fastlayers[mpi]'")
    if MPIEXEC is None:
        pytest.skip("there is no mpiexec")
    return Ranks(tmp_path)
