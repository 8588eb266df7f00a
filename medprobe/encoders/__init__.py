"""Frozen encoders by name, one module a family, each with the preprocessing that it was trained with."""
