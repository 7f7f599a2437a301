"""Monitoring: frozen reference bins, additive counts, verdicts, alerts, actions.

The training step freezes bins (`reference`); each evaluation adds new rows of the request log to counts (`ingest`,
`counts`, `store`), joins ground truth (`truth`, `metrics`), judges complete windows (`judge`), moves the alerts
(`alerts`, `actions`) and sends what is due (`outbox`). `evaluate.run` is the whole.
"""
