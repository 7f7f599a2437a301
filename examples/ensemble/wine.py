import pandas as pd
from sklearn.datasets import load_wine


def load() -> pd.DataFrame:
    """178 wines of three growers with 13 chemical measurements."""
    frame = load_wine(as_frame=True).frame.rename(columns={"target": "grower"})
    frame.columns = [name.replace("/", "_per_") for name in frame.columns]
    return frame.assign(bottle=[f"bottle-{number}" for number in range(len(frame))])
