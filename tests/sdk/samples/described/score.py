"""A script that brings a description of its own: swagger2.json, beside it."""

import json


def init():
    pass


def run(raw_data):
    return {"sum": sum(json.loads(raw_data)["data"])}
