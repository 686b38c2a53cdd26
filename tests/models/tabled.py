"""Reading the tables of reference values."""

import csv
import json

import numpy as np


def rows(path):
    """The rows of a CSV file as dictionaries of text."""
    with open(path) as file:
        return list(csv.DictReader(file))


def table(path, *, where=None):
    """Columns of numbers of a CSV file; `where`, (column, text), keeps some of the rows."""
    kept = [row for row in rows(path) if where is None or row[where[0]] == where[1]]
    columns = {}
    for name in kept[0]:
        try:
            columns[name] = np.array([float(row[name]) for row in kept])
        except ValueError:
            continue
    return columns


def case(path):
    """The content of a JSON file."""
    with open(path) as file:
        return json.load(file)
