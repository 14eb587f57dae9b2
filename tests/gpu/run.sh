#!/bin/sh
# On a machine with an NVIDIA GPU, its driver, NVRTC and cargo: runs what there is to run on a GPU, and prints one table.
# Exit codes: 0 everything passed, 1 something failed, 3 this machine has no driver.
set -u
cd "$(dirname "$0")/../.." || exit 1

if ! [ -e /proc/driver/nvidia/version ] && ! [ -e /dev/dxg ]; then
    echo "no NVIDIA driver on this machine: nothing was run" >&2
    exit 3
fi
cargo run --quiet -p anabranch-agent -- devices || exit 1
echo

failed=0
row() { printf '%-52s %s\n' "$1" "$2"; }
check() {
    if output=$(ANABRANCH_GPU_TESTS=1 cargo test --quiet -p anabranch-tests -p anabranch-agent --lib "$2" 2>&1); then
        row "$1" passed
    else
        row "$1" FAILED
        printf '%s\n' "$output" | tail -n 30
        failed=1
    fi
}

check "GPU codec: the CPU codec's bits" gpu::tests::a_gpu_gives_the_cpus_bits
check "GPU codec: kernels retold, and compiled for the CPU" gpu::
# What has no code yet stands in the table all the same, so that nobody takes a short table for a full one.
row "native trainer on CUDA: loss against the CPU" "does not exist"
row "native trainer on CUDA: examples/s against PyTorch" "does not exist"
row "GPU codec: GB/s against a copy on the device" "does not exist"
row "out-of-memory fitting on a GPU" "does not exist"
row "a killed GPU trainer recovers" "does not exist"
row "one run with GPU and CPU agents" "does not exist"
exit "$failed"
