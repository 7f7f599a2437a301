import pandas as pd
from sklearn.datasets import load_breast_cancer


def tumours() -> pd.DataFrame:
    """One row per tumour: 30 measurements and whether it was benign (1) or malignant (0)."""
    data = load_breast_cancer(as_frame=True)
    frame = data.frame.rename(columns={"target": "benign"})
    frame.columns = [name.replace(" ", "_") for name in frame.columns]
    return frame
