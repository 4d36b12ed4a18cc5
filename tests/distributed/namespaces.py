"""Two hosts on this machine: network namespaces, joined by a wire on which each frame takes time.

Each host is one end of a pair of virtual Ethernet devices, whose other ends are in a third
namespace. There a process passes frames on, as a bridge would, but each a delay later, which a
kernel without the queueing discipline netem cannot:

    ip netns exec WIRE python namespaces.py DELAY

Needs root, Linux and ``ip``.
"""

import json
import os
import select
import shlex
import socket
import stat
import subprocess
import sys
import time
from collections import deque

ADDRESSES = ["10.77.31.1", "10.77.31.2"]
# Of <linux/if_packet.h> and <asm/socket.h>. With the header of virtio, frames stay as large as the
# kernel made them, without checksums: 370 for 20 MB, which take 0.2 s.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE = 263, 15, 23, 33
ETH_P_ALL, LARGEST = 3, 1 << 17
# In place of ssh: it is given options, a host's address, and the words of a command.
AGENT = """\
#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host={prefix}-${{1##*.}}
shift
exec ip netns exec $host unshare --uts sh -c "hostname $host; $*"
"""


def run(*command):
    """What a command printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    """Two hosts, as a context; an OSError in its beginning means that there can be none."""

    def __init__(self, folder, delay):
        self.folder, self.delay, self.prefix = folder, delay, f"fastlayers{os.getpid()}"
        self.names = [f"{self.prefix}-{address.rpartition('.')[2]}" for address in ADDRESSES]
        self.wire = None

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.wire is not None:
            self.wire.kill()
            self.wire.communicate()
        for name in {*self.names, self.prefix} & {*run("ip", "netns").split()}:
            for process in run("ip", "netns", "pids", name).split():
                run("kill", "-KILL", process)
            run("ip", "netns", "del", name)  # and its devices

    def _build(self):
        if not sys.platform.startswith("linux"):
            raise OSError("only Linux has network namespaces")
        for name in (self.prefix, *self.names):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for i, (name, address) in enumerate(zip(self.names, ADDRESSES, strict=True)):
            ends = f"add port{i} netns {self.prefix} type veth peer name eth0 netns {name}"
            run("ip", "link", *ends.split())
            run("ip", "-n", self.prefix, "link", "set", f"port{i}", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        command = ["ip", "netns", "exec", self.prefix, sys.executable, __file__, str(self.delay)]
        self.wire = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if not self.wire.stdout.readline():
            raise OSError(self.wire.communicate()[1])

    def launch(self, ranks):
        """What goes before ``mpiexec`` for so many ranks on each host, and its variables."""
        agent = self.folder / "agent"
        agent.write_text(AGENT.format(prefix=self.prefix))
        agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
        variables = {"PRTE_MCA_plm_ssh_agent": str(agent), "HYDRA_LAUNCHER_EXEC": str(agent)}
        # Open MPI would take the ranks of a policy that lets hosts have too many all to the first.
        variables |= {"PRTE_MCA_rmaps_default_mapping_policy": "slot", "HYDRA_LAUNCHER": "ssh"}
        # MPICH's UCX knows a host by its kernel, and would use memory that the two share.
        variables["UCX_TLS"] = "tcp,self"
        for variable, line in {
            "PRTE_MCA_prte_default_hostfile": "{} slots={}\n",
            "HYDRA_HOST_FILE": "{}:{}\n",
        }.items():
            path = self.folder / variable
            path.write_text("".join(map(line.format, ADDRESSES, ranks)))
            variables[variable] = str(path)
        first = self.names[0]
        words = f"ip netns exec {first} unshare --uts sh -c".split()
        return [*words, f'hostname {first}; exec "$@"', "sh"], variables

    def sent(self):
        """Bytes that each host has sent over the wire."""
        links = [run("ip", "-n", name, "-s", "-j", "link", "show", "eth0") for name in self.names]
        return [json.loads(link)[0]["stats64"]["tx"]["bytes"] for link in links]


def pass_frames_on(delay):
    """Be the wire."""
    ports = []
    for i in range(2):
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        for option in (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING):
            port.setsockopt(SOL_PACKET, option, 1)
        port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        port.bind((f"port{i}", ETH_P_ALL))
        ports.append(port)
    other, frames = dict(zip(ports, reversed(ports), strict=True)), deque()
    print("ready", flush=True)
    while True:
        pause = max(0, frames[0][0] - time.monotonic()) if frames else None
        for port in select.select(ports, [], [], pause)[0]:
            frames.append((time.monotonic() + delay, other[port], port.recv(LARGEST)))
        while frames and frames[0][0] <= time.monotonic():
            _, port, frame = frames.popleft()
            port.send(frame)


if __name__ == "__main__":
    pass_frames_on(float(sys.argv[1]))
