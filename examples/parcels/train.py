"""Plain scikit-learn: nothing here knows about mlspec."""

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier


def train(train: pd.DataFrame, depth: int = 2, seed: int = 0):
    """Gradient boosting on whatever features the view has."""
    model = HistGradientBoostingClassifier(max_depth=depth, max_iter=50, random_state=seed)
    return model.fit(train.drop(columns="label"), train["label"])
