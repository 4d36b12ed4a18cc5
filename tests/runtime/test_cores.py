"""Files as Linux has them, in containers of both versions of control groups."""

import os

import pytest

from fastlayers.runtime import cores

TMPFS = "24 22 0:22 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw,mode=755\n"
VERSION_2 = "30 23 0:26 {} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n"
VERSION_1 = (
    TMPFS
    + "33 24 0:29 {0} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    + "34 24 0:30 {0} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
)
MEMBER_1 = "5:cpuset:/\n4:cpu,cpuacct:{}\n1:name=systemd:/user.slice\n"
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture
def root(tmp_path):
    """Give a function that writes a process's files below a folder, and gives the folder."""

    def write(member, mounted, **files):
        files = {"proc/self/cgroup": member, "proc/self/mountinfo": mounted, **files}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000000 50000", 20),
        ("", None),
    ],
)
def test_container_of_version_2(root, limit, expected):
    files = {"sys/fs/cgroup/cpu.max": f"{limit}\n"}
    assert cores.quota(root("0::/\n", VERSION_2.format("/"), **files)) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (("max 100000", "max 100000", "300000 100000"), 3),
        (("max 100000", "200000 100000", "300000 100000"), 2),
        (("400000 100000", "max 100000", "max 100000"), 4),
        (("max 100000",) * 3, None),
    ],
)
def test_a_group_is_bound_by_those_above(root, limits, expected):
    folder, files = "sys/fs/cgroup", {}
    for name, limit in zip(("a.slice", "b\\x2dc.scope", "d e"), limits, strict=True):
        folder += f"/{name}"
        files[f"{folder}/cpu.max"] = f"{limit}\n"
    member = "0::/a.slice/b\\x2dc.scope/d e\n"
    assert cores.quota(root(member, VERSION_2.format("/"), **files)) == expected


def test_groups_beside_and_below_do_not_count(root):
    files = {
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/a/below/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/b/cpu.max": "100000 100000\n",
    }
    assert cores.quota(root("0::/a\n", VERSION_2.format("/"), **files)) == 3


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", None)])
@pytest.mark.parametrize(
    ("member", "top", "below"),
    [
        ("/", "/", ""),
        ("/a", "/", "/a"),
        ("/docker/0a1b", "/docker/0a1b", ""),  # a container that sees its path on the host
        ("/docker/0a1b/c", "/docker/0a1b", "/c"),
        ("/docker/0a1b", "/elsewhere", ""),
        ("/../a", "/", ""),
    ],
)
def test_version_1(root, member, top, below, quota, expected):
    files = {f"{CPU}{below}/cpu.cfs_quota_us": f"{quota}\n"}
    files[f"{CPU}{below}/cpu.cfs_period_us"] = "100000\n"
    folder = root(MEMBER_1.format(member), VERSION_1.format(top), **files)
    assert cores.quota(folder) == expected


def test_both_versions_at_once(root):
    """As systemd's hybrid form, whose second version has no controllers."""
    unified = "41 24 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    files = {f"{CPU}/a/cpu.cfs_quota_us": "400000\n", f"{CPU}/a/cpu.cfs_period_us": "100000\n"}
    files["sys/fs/cgroup/unified/cgroup.procs"] = ""
    folder = root(MEMBER_1.format("/a") + "0::/\n", VERSION_1.format("/") + unified, **files)
    assert cores.quota(folder) == 4


def test_a_path_that_mountinfo_escapes(root):
    mounted = VERSION_2.format("/a\\040b\\134c")
    files = {"sys/fs/cgroup/d/cpu.max": "100000 100000\n"}
    assert cores.quota(root("0::/a b\\c/d\n", mounted, **files)) == 1


def test_without_control_groups(root, tmp_path):
    assert cores.quota(tmp_path) is None
    assert cores.quota(root("", TMPFS)) is None


@pytest.mark.parametrize(
    ("count", "allowed", "physical", "quota", "expected"),
    [
        (8, 8, None, None, (8, "all cores")),
        (8, 8, 8, 8, (8, "all cores")),
        (8, 3, None, None, (3, "affinity")),
        (8, 3, 3, 3, (3, "affinity")),
        (8, 6, 3, None, (3, "physical cores")),
        (8, 8, 4, 4, (4, "physical cores")),
        (8, 6, 3, 2, (2, "CPU quota")),
        (8, 6, None, 2, (2, "CPU quota")),
        (4, 8, None, 9, (4, "all cores")),
        (None, 1, None, None, (1, "all cores")),
        (2, 2, 1, None, (1, "physical cores")),
    ],
)
def test_the_smallest_limit_counts(monkeypatch, count, allowed, physical, quota, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(cores, "affinity", lambda: set(range(allowed)))
    monkeypatch.setattr(cores.topology, "physical", lambda logical, root: physical)
    monkeypatch.setattr(cores, "quota", lambda root: quota)
    assert cores.available() == expected


def test_files_of_one_root_decide(root, monkeypatch):
    """A container with a quota of 3 of 8 hyperthreads, of which 4 are on the same 2 cores."""
    files = {"sys/fs/cgroup/cpu.max": "300000 100000\n"}
    for n in range(8):
        pair = f"{n % 4},{n % 4 + 4}\n"
        files[f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list"] = pair
    folder = root("0::/\n", VERSION_2.format("/"), **files)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for allowed, expected in (
        (range(8), (3, "CPU quota")),
        ((1, 2, 5, 6), (2, "physical cores")),
        ((0, 1), (2, "affinity")),
    ):
        monkeypatch.setattr(cores, "affinity", lambda allowed=allowed: set(allowed))
        assert cores.available(folder) == expected


def test_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cores.affinity() == {3, 5}
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.affinity() == {0, 1, 2, 3}
