#!/usr/bin/env bash
# Scheduler and workers of this machine as processes of their own, as clusters have them:
#
#     bash segment.sh slide.ome.zarr out --membrane CD3 --nuclei DAPI
#
# `densebatch segment` alone does as much, and starts faster. This is to try a profile before it goes
# to a cluster, or to give memory limits. WORKERS=N, else one for each processor.
set -euo pipefail
workers=${WORKERS:-$(nproc)}
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
setsid dask worker --scheduler-file "$file" --nworkers "$workers" --nthreads 1 --no-dashboard \
    --preload densebatch.workers.leave --preload-nanny densebatch.workers.leave &
started+=($!)
densebatch segment --scheduler-file "$file" "$@" &
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
