"""The MLflow door: the real MLflow server under `/mlflow`, behind our own authorization.

    app.py        what `finery.app` mounts: who may come in, and where a request goes
    access.py     credentials, origins and the list of routes that are let through
    embedded.py   the real server, loaded on first use; every private name of MLflow that we lean on
    tracking.py   opens and closes the run of a job
    metrics.py    a quick way in for `runs/log-metric` and `runs/log-batch`
    runs.py       MLflow's own run store, its artifacts kept in our files
    registry.py   MLflow's model registry, kept among our own models
    models.py     one of our models as MLflow shows it

This package and nothing else in the server imports `mlflow`, and only inside
functions: loading it takes seconds and some 200 MB.
"""
