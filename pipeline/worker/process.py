"""A process that is nothing but a worker: its settings."""

from __future__ import annotations

import gc


def tune() -> None:
    """Set this process up for scoring; call it once, after everything is imported and before the first batch.

    A batch makes many small objects and drops them all again by counting references. The garbage collector would look
    at them in vain, several times a batch: it gets a longer leash, and never looks at what was there before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 100)
