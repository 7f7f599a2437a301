"""The state machine of an alert, as tables of windows and what follows."""

from __future__ import annotations

import pytest

from mlspec_runtime.monitor.alerts import Judged, State, advance

DAY = 86_400_000_000
BEGIN = 1_370_995_200_000_000  # 2013-06-12
OUTCOMES = {"b": "bad", "g": "good", "i": "insufficient"}


def judged(place: int, letter: str) -> Judged:
    """Window number `place`."""
    start = BEGIN + place * DAY
    text = {"b": "auc 0.68 < 0.70", "g": "auc 0.75 >= 0.70", "i": "fewer than 200 rows"}[letter]
    return Judged(start, OUTCOMES[letter], text, 0.68 if letter == "b" else 0.75, start + DAY)


def play(letters: str, need: int) -> list[State]:
    """The state after each window."""
    history = [judged(place, letter) for place, letter in enumerate(letters)]
    states = [State()]
    for place in range(len(history)):
        states.append(advance(states[-1], history[: place + 1], need, "1d"))
    return states[1:]


@pytest.mark.parametrize(
    ("letters", "need", "stages", "reason"),
    [
        ("b", 1, "f", "one window is enough when the policy says so"),
        ("bbb", 3, "ppf", "three consecutive windows"),
        ("bbgbbb", 3, "ppippf", "a good window breaks the streak"),
        ("bbib", 3, "pppf", "an insufficient window neither breaks nor feeds it"),
        ("ibii", 1, "ifff", "nor does it resolve"),
        ("bbbg", 3, "ppfr", "a good window resolves"),
        ("bbbgg", 3, "ppfrr", "and stays resolved, no second event"),
        ("bbbgb", 3, "ppfrp", "a new episode begins pending"),
        ("bgbgbg", 1, "frfrfr", "each episode fires once"),
        ("gggg", 1, "iiii", "nothing happens on quiet data"),
    ],
)
def test_stages(letters, need, stages, reason):
    """Each row is one story; pages go out on f and r only."""
    names = {"i": "inactive", "p": "pending", "f": "firing", "r": "resolved"}
    assert [state.stage for state in play(letters, need)] == [names[one] for one in stages], reason


def test_the_sentence_names_value_limit_and_duration():
    """It is read at 03:00; it says what, how long and since when, and is the same while nothing changes."""
    states = play("bbbbg", 3)
    assert states[0].sentence == "auc 0.68 < 0.70 for 1 of 3 days, since Jun 12"
    assert states[2].sentence == "auc 0.68 < 0.70 for 3 days, since Jun 12"
    assert states[3].sentence == "auc 0.68 < 0.70 for 4 days, since Jun 12"
    assert states[4].sentence == "auc 0.75 >= 0.70 since Jun 16"
    assert play("i", 1)[0].sentence == "not judged: fewer than 200 rows"


def test_a_revised_window_raises_but_takes_nothing_back():
    """Late rows may change a verdict; an alert that went to and fro with them would be muted by its readers."""
    firing = play("bbb", 3)[-1]
    again = advance(firing, [judged(0, "b"), judged(1, "b"), judged(2, "g")], 3, "1d", revised=True)
    assert again == firing
    quiet = play("bbg", 3)[-1]
    raised = advance(quiet, [judged(0, "b"), judged(1, "b"), judged(2, "b")], 3, "1d", revised=True)
    assert raised.stage == "firing"


def test_units_of_other_windows():
    """Hours show the time of day; odd lengths are counted in windows."""
    hour = advance(State(), [judged(0, "b")], 1, "1h")
    assert hour.sentence == "auc 0.68 < 0.70 for 1 hour, since Jun 12 00:00"
    assert "for 1 window of 15m" in advance(State(), [judged(0, "b")], 1, "15m").sentence
