"""What the settings of all sources and of all sinks have."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from gridscore.job.types import (
    DEAD_LETTER_BYTES,
    DEAD_LETTERS,
    Duration,
    JobName,
    MapName,
    MaxDeadLetterBytes,
    MaxDeadLetters,
    Name,
    Strict,
)

CLUSTER = "the cluster"  # what a plug waits for that is interrupted, if not for the other side
MAX_FURTHER_MAPS = 64  # maps of a source beside its `to`


def _as_texts(value: Any) -> Any:
    """YAML's `true` and `3` as the texts that they were."""
    if not isinstance(value, dict):
        return value
    return {key: json.dumps(each) if isinstance(each, bool | int | float) else each for key, each in value.items()}


# Texts by name; numbers and booleans of a job file are taken for the texts that they were.
Texts = Annotated[dict[str, str], BeforeValidator(_as_texts)]


class SourceSettings(Strict):
    """Settings of a source: where its events go. Each plug adds its `kind` and its own.

    `makes_texts_of_keys`: whether a key of it is never a whole number.
    """

    makes_texts_of_keys: ClassVar[bool] = False

    @property
    def has_end(self) -> bool:
        """Whether it ends by itself, once it has read what there is."""
        return False

    to: MapName = Field(description="The event map; or any other, without back-pressure if it has no journal.")
    name: JobName | None = Field(
        default=None, description="Name of the source, under which it keeps its positions and dead letters."
    )
    max_wait: Duration | None = Field(
        default=None, description="How long events may wait for a job that does not score; for ever if not given."
    )
    stamp: Name | None = Field(
        default=None,
        description="Field that each event gets: when the source has read it, in milliseconds since 1970.",
    )

    max_dead_letters: MaxDeadLetters = Field(
        default=DEAD_LETTERS, description="Dead letters of the source in the cluster above which it pauses."
    )
    max_dead_letter_bytes: MaxDeadLetterBytes = Field(default=DEAD_LETTER_BYTES, description="The same in bytes.")
    max_rejected: int = Field(
        default=90,
        ge=1,
        le=100,
        description="Pause when more than this percentage of the last 1,000 are not events, as with a wrong format; "
        "100: never.",
    )


class SinkSettings(Strict):
    """Settings of a sink: which results it delivers. Each plug adds its `kind` and its own.

    In a job file and on the command line the map is called `from`, which Python keeps for itself.
    """

    model_config = ConfigDict(populate_by_name=True)

    results: MapName = Field(alias="from", description="The result map.")
    name: JobName | None = Field(
        default=None,
        description="Name of the sink: all its processes share the work, and its offsets and dead letters.",
    )
    start: Literal["oldest", "latest"] = Field(default="oldest", description="Where the first process begins.")
    on_loss: Literal["rescan", "continue", "halt"] = Field(
        default="rescan",
        description="What to do when results were overwritten before they were read: deliver once more what the map "
        "holds of the partition, go on, or stop.",
    )
    only: Texts = Field(
        default_factory=dict,
        max_length=16,
        description="Deliver only results with these values: `decision: decline`. All of them if empty.",
    )

    max_dead_letters: MaxDeadLetters = Field(
        default=DEAD_LETTERS, description="Dead letters of the sink in the cluster above which it pauses."
    )
    max_dead_letter_bytes: MaxDeadLetterBytes = Field(default=DEAD_LETTER_BYTES, description="The same in bytes.")

    @property
    def destination(self) -> str:
        """What its offsets are good for, as far as that has a name: `the topic scores`. Kept, so without secrets."""
        return ""
