#!/bin/sh
# tests/gpu/run.sh [DEVICE [OPTION...]]: runs what there is to run on a GPU, and prints one table. DEVICE is what `--device` takes: cuda
# (the default, with an NVIDIA GPU, its driver, NVRTC and CUDA's headers), cuda:1, vulkan, rocm, metal; cpu tries the script.
# Options are those of `anabranch-lab bench trainer`, like --rounds 1.
# ANABRANCH_GPU_PROFILE=dev measures speed in the development profile, which is not built twice then. PYTHON names a Python
# with PyTorch. Exit codes: 0 everything passed, 1 something failed, 3 this machine has no driver.
set -u
cd "$(dirname "$0")/../.." || exit 1

device=${1:-cuda}
[ $# -gt 0 ] && shift
backend=${device%%:*}
profile=${ANABRANCH_GPU_PROFILE:-release}
python=${PYTHON:-python3}
case $backend in
cuda | vulkan | rocm | metal) features="--features $backend" ;;
cpu) features= ;;
*)
    echo "unknown device $device" >&2
    exit 1
    ;;
esac
if [ "$backend" = cuda ] && ! [ -e /proc/driver/nvidia/version ] && ! [ -e /dev/dxg ]; then
    echo "no NVIDIA driver on this machine: nothing was run" >&2
    exit 3
fi

failed=0
row() { printf '%-64s %s\n' "$1" "$2"; }
# What cargo is told before a command of its own; the features are those of anabranch-tests, which passes them on.
lab() {
    verb=$1
    shift
    # Word splitting is wanted: there may be no features.
    # shellcheck disable=SC2086
    cargo "$verb" --quiet -p anabranch-tests $features "$@"
}
check() {
    name=$1
    shift
    if output=$("$@" 2>&1); then
        row "$name" passed
        # Figures that a test prints.
        printf '%s\n' "$output" | grep -E '^(Mlp|Cnn|Gpt) ' | sed 's/^/    /'
    else
        row "$name" FAILED
        printf '%s\n' "$output" | tail -n 30
        failed=1
    fi
}
# The tests by these names; a name that no test has fails.
codec() {
    for name; do
        ran=$(ANABRANCH_GPU_TESTS=1 cargo test --quiet -p anabranch-tests -p anabranch-agent --lib "$name") || {
            printf '%s\n' "$ran"
            return 1
        }
        printf '%s\n' "$ran" | grep -q 'ok\. [1-9]' || {
            echo "no test is named $name"
            return 1
        }
    done
}
accelerator() { CI=true ANABRANCH_TEST_DEVICE=$device lab test --test accelerator -- --nocapture "$1"; }
speed() {
    bench=$1
    shift
    release=
    [ "$profile" = release ] && release=--release
    # shellcheck disable=SC2086
    lab run $release --bin anabranch-lab -- bench "$bench" --device "$device" "$@"
}
# What a bench prints.
figures() {
    if output=$("$@" 2>&1); then
        printf '%s\n' "$output"
    else
        printf '%s\n' "$output" | tail -n 30
        failed=1
    fi
}

lab run --bin anabranch-lab -- as-agent devices || exit 1
echo
if [ "$backend" = cuda ]; then
    check "GPU codec: the CPU codec's bits" codec encoder::tests::a_gpu_gives_the_cpus_bits
    check "GPU codec: kernels retold, and compiled for the CPU" codec encoder::tests encode::cuda::
fi
if [ "$backend" != cpu ]; then
    check "native trainer on $device: losses and models against the CPU" accelerator a_gpu_trains_as_the_cpu_does
    check "a device that does not exist is refused" accelerator a_device_that_does_not_exist
    check "a batch that does not fit into memory (cuda, lavapipe; else it passes)" accelerator a_round_that_runs_out
    check "one run with a GPU and a CPU agent; a killed child recovers" accelerator a_gpu_and_a_cpu_train
fi
row "native trainer on $device: examples/s ($profile profile)" "below"
figures speed trainer --python "$python" "$@"
case $backend in
cuda | cpu)
    row "GPU codec: GB/s against a copy on the device ($profile profile)" "below"
    # On a CPU only the bench itself is tried.
    params=100000000
    [ "$backend" = cpu ] && params=1000000
    figures speed encoder --params "$params" --fraction 0.01
    ;;
esac
exit "$failed"
