"""Step 5: how fast the endpoint answers, by one caller and by several; kept in MLflow.

The calls are whole ones, through the SDK, as a program that uses the endpoint makes them.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import numpy as np
from azure.ai.ml import MLClient
from connect import CONFIG, client, recall, remember

COLUMNS = ("threads", "duration", "throughput", "avg_sec", "std_sec", "p95_sec", "p99_sec")


def benchmark_latency(
    ml_client: MLClient,
    endpoint_name: str,
    deployment_name: str,
    request_file: str,
    num_warmups: int = 1,
    num_infers: int = 5,
) -> dict[str, float]:
    """Calls one after the other; the first few are not counted."""
    call = caller(ml_client, endpoint_name, deployment_name, request_file)
    for _ in range(num_warmups):
        call()
    began = time.perf_counter()
    times = [call() for _ in range(num_infers)]
    return measured(times, duration=time.perf_counter() - began, num_threads=1)


def benchmark_latency_multicore(
    ml_client: MLClient,
    endpoint_name: str,
    deployment_name: str,
    request_file: str,
    num_warmups: int = 1,
    num_infers: int = 5,
    num_threads: int = 2,
) -> dict[str, float]:
    """As many calls in each of several threads at once."""
    call = caller(ml_client, endpoint_name, deployment_name, request_file)
    for _ in range(num_warmups):
        call()

    def work(_: int) -> list[float]:
        return [call() for _ in range(num_infers)]

    began = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as threads:
        times = [
            seconds for several in threads.map(work, range(num_threads)) for seconds in several
        ]
    return measured(times, duration=time.perf_counter() - began, num_threads=num_threads)


def caller(ml_client: MLClient, endpoint: str, deployment: str, file: str) -> Any:
    def call() -> float:
        began = time.perf_counter()
        ml_client.online_endpoints.invoke(
            endpoint_name=endpoint, deployment_name=deployment, request_file=file
        )
        return time.perf_counter() - began

    return call


def measured(times: list[float], *, duration: float, num_threads: int) -> dict[str, float]:
    return {
        "threads": num_threads,
        "duration": duration,
        "throughput": len(times) / duration,
        "avg_sec": float(np.mean(times)),
        "std_sec": float(np.std(times)),
        "p95_sec": float(np.percentile(times, 95)),
        "p99_sec": float(np.percentile(times, 99)),
    }


def table(rows: list[dict[str, float]]) -> str:
    lines = ["".join(f"{name:>12}" for name in COLUMNS)]
    for row in rows:
        lines.append(
            "".join(f"{row[name]:>12.{0 if name == 'threads' else 3}f}" for name in COLUMNS)
        )
    return "\n".join(lines)


def keep(rows: list[dict[str, float]], facts: dict[str, Any]) -> str:
    """Log it as a run below the training's, in the same experiment; gives the run's id."""
    trained = mlflow.get_run(facts["job"])
    tags = {name: str(facts[name]) for name in ("endpoint", "deployment", "model_version")}
    with mlflow.start_run(
        experiment_id=trained.info.experiment_id,
        run_name="benchmark",
        tags={"mlflow.parentRunId": facts["job"], **tags},
    ) as run:
        for row in rows:
            # The step is the number of threads: a chart of latency by load.
            shown = {name: value for name, value in row.items() if name != "threads"}
            mlflow.log_metrics(shown, step=int(row["threads"]))
        mlflow.log_table({name: [row[name] for row in rows] for name in COLUMNS}, "benchmark.json")
    return run.info.run_id


if __name__ == "__main__":
    facts, settings = recall(), CONFIG["benchmark"]
    target = (client(), facts["endpoint"], facts["deployment"], facts["request"])
    counts = {name: settings[name] for name in ("num_warmups", "num_infers")}
    rows = [benchmark_latency(*target, **counts)]
    for threads in settings["num_threads"]:
        rows.append(benchmark_latency_multicore(*target, **counts, num_threads=threads))
    print(table(rows))
    run = keep(rows, facts)
    remember(benchmark=rows, benchmark_run=run)
    print(f"Logged in MLflow, run {run}")
