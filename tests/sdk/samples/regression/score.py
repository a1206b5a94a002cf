"""A pickled regression behind the plain contract: JSON text in, a list out."""

import json
import logging
import os

import joblib
import numpy

PICKLE = "sklearn_regression_model.pkl"


def init():
    global model
    model = joblib.load(os.path.join(os.getenv("AZUREML_MODEL_DIR"), PICKLE))
    logging.info("the regression is loaded")


def run(raw_data):
    rows = numpy.array(json.loads(raw_data)["data"])
    logging.info("asked about %d rows", len(rows))
    return model.predict(rows).tolist()
