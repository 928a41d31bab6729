"""How each tensor is stored: the decision (plan.py) and the arithmetic (pack.py)."""
