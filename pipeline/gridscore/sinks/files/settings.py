"""Settings of the file sink: where its files are, of which kind, and when one is complete."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gridscore.job.plugs.base import SinkSettings
from gridscore.job.types import Duration  # noqa: TC001 -- pydantic reads it


class FilesSinkSettings(SinkSettings):
    """Results as files in a folder, each of them complete when it appears."""

    kind: Literal["files"] = "files"
    folder: str = Field(min_length=1, max_length=4_000, description="Folder of the files; made if it does not exist.")
    format: Literal["parquet", "jsonl"] = Field(
        default="parquet", description="Parquet, or JSON lines: one object a line."
    )
    max_results: int = Field(default=100_000, ge=1, le=1_000_000, description="Results after which a file is complete.")
    max_age: Duration = Field(
        default="1m", description="Time after which a file is complete, however few results it has."
    )
    gzip: bool = Field(default=False, description="Compress JSON lines; Parquet is compressed in any case.")

    @model_validator(mode="after")
    def _gzip_of_lines(self) -> FilesSinkSettings:
        if self.gzip and self.format == "parquet":
            raise ValueError("`gzip` is for `format: jsonl`; Parquet is compressed within")
        return self
