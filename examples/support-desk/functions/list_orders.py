"""Lists the orders of a customer, the newest first. `ORDERS` is orders.csv, put on the first line by `sinas apply`."""

import csv
import io


def handler(input_data, context):
    email = input_data["email"].strip().lower()
    orders = [
        {key: order[key] for key in ("order_number", "item", "status", "ordered_on", "total")}
        for order in csv.DictReader(io.StringIO(ORDERS))
        if order["customer_email"] == email
    ]
    orders.sort(key=lambda order: order["ordered_on"], reverse=True)
    return {"email": email, "count": len(orders), "orders": orders}
