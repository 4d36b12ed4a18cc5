#!/usr/bin/env bash
# Tests on 64-bit ARM, which this machine emulates: a Cortex-A76, by qemu-user of Debian 13, with
# Debian 12's Python 3.11 and this environment's versions of NumPy, Numba and llvmlite. Not a part of
# CI. On Debian or Ubuntu, with apt-get, dpkg-deb and Python 3.11, and without being root:
#
#     tests/arm.sh FOLDER               # all parts; half an hour, and 1.2 GB in the folder
#     tests/arm.sh FOLDER fill pooling  # some; `root` comes before all others
#
# `root` fetches packages and unpacks them, `fill` compiles all kernels for armv8.2-a on this machine,
# which takes 2 minutes instead of an hour. What is compiled for a test alone is compiled under
# emulation. Each part adds a line to FOLDER/outcomes.tsv: its name, its outcome and its seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(realpath -m "$1")
shift
PYTHON=${PYTHON:-python3}
LEVEL=armv8.2-a CPU=cortex-a76
root=$folder/root
export FASTLAYERS_CACHE_DIR=$folder/cache FASTLAYERS_QUIET=1

# Parts of the tests, and what pytest is given.
declare -A TESTS=(
    [vectors]="tests/kernels/test_vectors.py"
    [conv]="tests/ops/test_specs.py -k 'agrees and conv2d'"
    [depthwise]="tests/ops/test_depthwise.py"
    [winograd]="tests/ops/test_winograd.py -k 'agrees or threads_do or nontemporal'"
    [pooling]="tests/ops/test_specs.py -k 'agrees and pool'"
    [norm]="tests/ops/test_specs.py -k 'agrees and batch_norm and not pool'"
    [linear]="tests/ops/test_specs.py -k 'agrees and linear'"
    [loss]="tests/ops/test_specs.py -k 'agrees and loss'"
    [threads]="tests/ops/test_specs.py -k threads"
)
PARTS=(root fill vectors conv depthwise winograd pooling norm linear loss threads training)

# Fetch packages of a suite, and all that they depend on, with an apt of its own.
fetch() { # ARCHITECTURE SUITE PACKAGE...
    local architecture=$1 suite=$2 apt=$folder/apt/$1-$2
    shift 2
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,parts}
    : >"$apt/status"
    cat >"$apt/apt.conf" <<CONF
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "$apt/parts";
Dir::Etc::PreferencesParts "$apt/parts";
CONF
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "http://deb.debian.org/debian $suite main" >"$apt/sources.list"
    APT_CONFIG=$apt/apt.conf apt-get update -q
    APT_CONFIG=$apt/apt.conf apt-get install -qq -y --download-only "$@"
}

build_root() {
    fetch arm64 bookworm python3 libgomp1 libstdc++6
    fetch amd64 trixie qemu-user
    mkdir -p "$root" "$folder/host" "$folder/wheels"
    for package in "$folder"/apt/arm64-bookworm/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    dpkg-deb -x "$folder"/apt/amd64-trixie/cache/archives/qemu-user_*.deb "$folder/host"
    local versions=()
    for name in numpy numba llvmlite; do
        versions+=("$("$PYTHON" -c "import importlib.metadata as m
print('$name==' + m.version('$name'))")")
    done
    "$PYTHON" -m pip download -q -d "$folder/wheels" --only-binary=:all: --implementation cp \
        --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 "${versions[@]}" pytest hypothesis
    for wheel in "$folder"/wheels/*.whl; do
        "$PYTHON" -m zipfile -e "$wheel" "$root/site"
    done
    local python qemu
    python=$(emulated --version)
    qemu=$("$folder/host/usr/bin/qemu-aarch64" --version | sed -n 's/.*version \([0-9.]*\).*/qemu \1/p')
    echo "$python, $qemu, ${versions[*]}"
}

# Run Python on the emulated CPU.
emulated() {
    FASTLAYERS_CPU=$LEVEL PYTHONPATH=$PWD:$root/site PYTHONDONTWRITEBYTECODE=1 \
        "$folder/host/usr/bin/qemu-aarch64" -cpu "$CPU" -L "$root" "$root/usr/bin/python3.11" "$@"
}

fill() {
    for dtype in float32 float64; do
        PYTHONPATH=$PWD "$PYTHON" -m fastlayers warmup --all --cpu "$LEVEL" --dtype "$dtype"
    done
}

# Three steps of a small network, there and here: the losses agree to five digits.
train() {
    local program="
import numpy as np
import fastlayers as fl
fl.manual_seed(0)
model, x = fl.vision.models.CNN(10, 1, 28), np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
optimizer = fl.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for _ in range(3):
    loss = fl.nn.functional.cross_entropy(model(fl.Tensor(x)), np.arange(4))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item())
"
    emulated -c "$program" >"$folder/there"
    PYTHONPATH=$PWD "$PYTHON" -c "$program" >"$folder/here"
    "$PYTHON" -c "
import sys
there, here = ([float(line) for line in open(path)] for path in sys.argv[1:])
assert len(there) == 3 and all(abs(a / b - 1) < 1e-5 for a, b in zip(there, here)), (there, here)
print(f'losses {there}, here {here}')" "$folder/there" "$folder/here"
}

run_part() {
    case $1 in
    root) build_root ;;
    fill) fill ;;
    training) train ;;
    *) eval "emulated -m pytest -q -p no:cacheprovider ${TESTS[$1]}" ;;
    esac
}

[ $# -gt 0 ] || set -- "${PARTS[@]}"
mkdir -p "$folder"
failed=0
for part in "$@"; do
    [[ " ${PARTS[*]} " == *" $part "* ]] || {
        echo "a part is one of ${PARTS[*]}, got $part" >&2
        exit 2
    }
    echo "== $part"
    begin=$SECONDS
    set +e # but not in the part, which a condition around it would do
    (
        set -e
        run_part "$part"
    ) 2>&1 | tee "$folder/$part.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
    set -e
    outcome=$(tail -n 1 "$folder/$part.log")
    printf '%s\t%s\t%d\n' "$part" "${outcome//$'\t'/ }" $((SECONDS - begin)) >>"$folder/outcomes.tsv"
done
exit "$failed"
