"""A version as one file, to take to another cluster: a ZIP archive with the model and what is known of it.

A bundle may come from anybody: nothing in it is trusted but what a push checks anew.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from gridscore.errors import ModelError
from gridscore.models.record import About
from gridscore.models.version import MAX_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from gridscore.models.version import ModelVersion

_MODEL = "model"
_ABOUT = "version.json"
_MOST_ABOUT = 64 << 20


class _Known(msgspec.Struct, frozen=True):
    """What `version.json` says that no push could find out by itself; the rest in it is for people."""

    name: Annotated[str, Meta(max_length=100)]
    version: Annotated[int, Meta(ge=1, le=2**31)]
    metrics: dict[str, float] = {}
    categories: dict[str, tuple[str, ...]] = {}
    about: About = About()


class Bundle(NamedTuple):
    """What a file holds."""

    payload: bytes
    name: str  # of the model, where it was exported
    options: dict[str, Any]  # what `Registry.add` takes with it


def pack(version: ModelVersion, payload: bytes, about: About) -> bytes:
    """The bytes of a bundle: always the same for the same version."""
    known = {**version.to_json(), "about": msgspec.to_builtins(about)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_MODEL), payload)
        archive.writestr(zipfile.ZipInfo(_ABOUT), msgspec.json.format(msgspec.json.encode(known)))
    return file.getvalue()


def unpack(path: Path) -> Bundle:
    """Read a bundle. Raises ModelError if it is not one, or too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            payload = _read(archive, _MODEL, MAX_SIZE)
            known = msgspec.json.decode(_read(archive, _ABOUT, _MOST_ABOUT), type=_Known)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.", "`gridscore model export` writes one.") from None
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path} is not an exported model: {' '.join(str(error).split())[:300]}.",
            "`gridscore model export` writes one.",
        ) from None
    options = {
        "metrics": known.metrics,
        "categories": known.categories,
        "description": known.about.description or None,
        "tags": known.about.tags,
        "source": f"{known.name} v{known.version}",
    }
    return Bundle(payload, known.name, options)


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A part of the archive, which `pack` does not compress: so it takes no more memory than the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"its `{name}` is compressed, or larger than {most:,} bytes")
    with archive.open(info) as part:
        found = part.read(most + 1)
    if len(found) != info.file_size:
        raise ValueError(f"its `{name}` is incomplete")
    return found
