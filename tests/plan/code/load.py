"""Sources of the cases' datasets (never called: a script plays the runs)."""


def flights():
    """Rows."""


def weather():
    """Rows."""
