"""`promtool`, Prometheus' own judge of metrics and rules; and the names of the metrics that a text has."""

import shutil
import subprocess

from prometheus_client.parser import text_string_to_metric_families
from servers import not_here

PROMTOOL = shutil.which("promtool")


def promtool(*arguments, text=""):
    """What it prints; an error is one of the test's."""
    if PROMTOOL is None:
        not_here("promtool is not installed: Debian's package `prometheus` has it")
    done = subprocess.run([PROMTOOL, *map(str, arguments)], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def samples(text):
    """Values by name and by the values of the labels, those of one process."""
    return {
        (each.name, *each.labels.values()): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }
