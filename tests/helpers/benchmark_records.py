"""A benchmark's record for the tests of records, tables and pictures."""

from densebatch.studies.benchmark_record import BenchmarkRecord, Row


def make_record(kind="throughput", rows=None, **changes):
    values = {
        "wall_s": 2.0,
        "predict_task_s": 1.0,
        "predict_network_task_s": 0.9,
        "trace_trace_task_s": 0.4,
        "gpu_share": None,
    }
    rows = rows or [Row("segment", values)]
    return BenchmarkRecord(
        kind,
        "densebatch benchmark",
        changes.get("settings", {"size": 256}),
        rows,
        changes.get("machine", {"cores": 2, "load_before": 0.1}),
        {"torch": "1"},
    )
