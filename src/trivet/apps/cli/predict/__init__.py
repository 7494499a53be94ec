"""``trivet predict``: one module a kind of row."""

from trivet.apps.cli.lazy import lazy_group

COMMANDS = {
    "serving": "TTFT and TPOT of serving configurations, with 80% intervals.",
    "training": "Tokens per second and chip and memory of training jobs.",
    "operators": "Latency of kernels and collectives.",
    "requests": "Queue, first and last token of each request of a log.",
}
app = lazy_group("trivet.apps.cli.predict", COMMANDS, "Predict a file of rows.")
