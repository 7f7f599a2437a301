"""Training, other code."""


def train(train, learning_rate=0.1):
    """Another model."""
