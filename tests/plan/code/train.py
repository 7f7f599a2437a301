"""Training of the cases' jobs (never called)."""


def train(train, learning_rate=0.1):
    """A model."""
