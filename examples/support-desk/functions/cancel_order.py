"""Decides whether an order can still be canceled. A person approves each call (`requiresApproval`)."""

import csv
import io


def handler(input_data, context):
    wanted = str(input_data["order_number"]).lstrip("#")
    order = next((row for row in csv.DictReader(io.StringIO(ORDERS)) if row["order_number"] == wanted), None)
    if order is None:
        raise ValueError(f"there is no order {wanted}")
    possible = order["status"] == "processing"
    print(f"cancellation of {wanted} asked by {context['user_email']}: {'accepted' if possible else 'refused'}")
    return {"order_number": wanted, "canceled": possible, "status": order["status"]}
