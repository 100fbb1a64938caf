"""Python packages that functions may import: approved by administrators, resolved together, installed as one set."""
