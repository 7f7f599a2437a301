"""Plain scikit-learn: nothing here knows about mlspec."""

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier


def train(train: pd.DataFrame, learning_rate: float = 0.1, trees: int = 100, seed: int = 0):
    """Gradient boosting on whatever features the view has."""
    model = HistGradientBoostingClassifier(learning_rate=learning_rate, max_iter=trees, random_state=seed)
    return model.fit(train.drop(columns="label"), train["label"])
