"""Batches run on a Dask cluster, resume, and never wait for themselves."""

import threading

import numpy as np
import pandas as pd
from distributed import LocalCluster

from digit69.batch import run_batch
from digit69.data import Split
from digit69.parallel import run_isolated
from digit69.readers import write_split
from digit69.simulation import simulate

GRID = """
command: run
fixed: {{data: {data}, models: ridge, preset: smoke}}
grid: {{seed: [0, 1]}}
"""


def test_a_batch_runs_on_a_cluster_and_collects_one_comparison(tmp_path):
    data = simulate(40, 10, 120, seed=1).pooled()
    split = Split(data.rows(np.arange(40)), data.rows(np.arange(40, 50)))
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.format(data=write_split(split, tmp_path / "data.npz")))
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(n_workers=2, host="127.0.0.1", **options) as cluster:
        page = run_batch(grid, tmp_path / "out", scheduler=cluster.scheduler_address)
    assert "Published results" in page.read_text()
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table.model) == ["mean", "class_mean", "ridge"]  # the same with either seed
    assert list(pd.read_csv(tmp_path / "out" / "comparison_seeds.csv").seeds) == [2, 2, 2]
    metrics = tmp_path / "out" / "run_seed-0" / "metrics.json"
    written = metrics.stat().st_mtime_ns
    run_batch(grid, tmp_path / "out")
    assert metrics.stat().st_mtime_ns == written  # finished: not run again


def test_tasks_that_run_tasks_do_not_wait_for_themselves():
    results = []

    def nested():
        results.append(run_isolated(run_isolated, pow, 2, 3))

    worker = threading.Thread(target=nested, daemon=True)
    worker.start()
    worker.join(10)
    assert results == [8]
