#!/usr/bin/env bash
# The GPUs of one machine, a worker for each, by dask-cuda (the extra `gpu`):
#
#     bash segment.sh slide.ome.zarr out --membrane CD3 --nuclei DAPI
#
# CUDA_VISIBLE_DEVICES narrows which GPUs. THREADS=N tasks at once on each (2): one that traces beside
# one for the network. With several machines, start one scheduler, and this `dask cuda worker` line
# on each of them.
set -euo pipefail
threads=${THREADS:-2}
# Workers keep the memory that they free, see docs/clusters.md; Dask tells of what goes wrong only.
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=268435456
export DASK_LOGGING__DISTRIBUTED=warning

scratch=$(mktemp -d)
export DASK_TEMPORARY_DIRECTORY=$scratch
file=$scratch/scheduler.json
started=()
finish() {
    trap '' TERM INT
    for ((n = ${#started[@]}; n > 0; n--)); do # workers first, which take leave of the scheduler
        kill "${started[n - 1]}" 2>/dev/null || true
        wait "${started[n - 1]}" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap finish EXIT
setsid dask scheduler --scheduler-file "$file" --host 127.0.0.1 --port 0 --no-dashboard &
started+=($!)
# Each worker sees its own GPU first. dask-cuda would have it take turns with the host's memory for
# arrays that Dask holds, of which there are none here.
setsid dask cuda worker --scheduler-file "$file" --nthreads "$threads" --no-dashboard \
    --device-memory-limit 0 --preload densebatch.workers.leave &
started+=($!)
densebatch segment --scheduler-file "$file" --device cuda "$@" &
run=$!
# Ctrl-C and SIGTERM reach densebatch alone, which finishes the tasks under way.
trap 'signalled=yes; kill -TERM $run 2>/dev/null' TERM INT
signalled=yes
while [ -n "$signalled" ]; do # a signal ends `wait` as well as the end of the run
    signalled=
    code=0
    wait $run || code=$?
done
exit "$code"
