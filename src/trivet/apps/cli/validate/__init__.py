"""``trivet validate``: one module a kind of measurement."""

from trivet.apps.cli.lazy import lazy_group

COMMANDS = {
    "serving": "TTFT and TPOT against measured serving runs.",
    "training": "Tokens per second against measured training runs.",
    "operators": "Kernel and collective latencies against measured ones.",
    "requests": "A request log against its replay.",
    "golden": "Small samples of all of these against the accuracy recorded for them.",
}
app = lazy_group("trivet.apps.cli.validate", COMMANDS, "Predicted against measured.")
