"""The feature engine: one definition, evaluated for training (`join`) and for requests (`online`) with equal results.

A row of a dataset counts for a question at the moment t iff it had happened and was known before t. `materialise` lifts the
rows of a set's dataset to events (key, event time, known time, input columns), once. `join` answers many questions at once over the
events, `online` one at a time over the store of the same events. They are different algorithms with bit-equal results, because
numbers are added as integers (`exact`), and ties are broken by content, never by the order of arrival.

    definition     specs -> plans: which SQL is evaluated, which aggregate of which column over which window
    values         types and row expressions on DuckDB
    exact          sums of floats without rounding
    timeline       the kernel of `join`: every event is an interval of questions that see it
    point          the kernel of `online`: one question about the events of one key
    rowwise        row expressions of a request
    materialise, join, store, online, parity
"""
