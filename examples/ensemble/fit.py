import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def fit(train: pd.DataFrame, algorithm: str, seed: int = 0):
    """One of three classifiers on the measurements."""
    models = {
        "linear": make_pipeline(StandardScaler(), LogisticRegression()),
        "forest": RandomForestClassifier(n_estimators=50, random_state=seed),
        "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(7)),
    }
    return models[algorithm].fit(train.drop(columns=["label", "bottle"]), train["label"])
