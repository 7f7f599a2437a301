import numpy as np


def clean(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Instruments report impossible values as negative numbers: take them as zero."""
    return {name: np.maximum(values, 0.0) for name, values in columns.items()}
