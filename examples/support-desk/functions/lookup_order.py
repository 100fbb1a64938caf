"""Looks up one order by its number. `ORDERS` is orders.csv, put on the first line by `sinas apply`."""

import csv
import io


def handler(input_data, context):
    wanted = str(input_data["order_number"]).lstrip("#")
    for order in csv.DictReader(io.StringIO(ORDERS)):
        if order["order_number"] == wanted:
            return {"found": True, **order}
    return {"found": False, "order_number": wanted}
