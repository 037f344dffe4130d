"""Places on Earth, by latitude and longitude in degrees. What is not a place, as (999, 999), gives missing values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features import maths

if TYPE_CHECKING:
    from collections.abc import Callable

RADIUS = 6371.0088  # kilometres: the mean radius of the Earth, of the IUGG
_LETTERS = np.frombuffer(b"0123456789bcdefghjkmnpqrstuvwxyz", np.uint8)
_BITS = 30  # of a latitude or longitude in a geohash of 12 characters; shorter ones are its beginning
_sin, _cos, _asin = map(maths.function, ("sin", "cos", "asin"))


def _is_place(latitude: Any, longitude: Any) -> Any:
    return (np.abs(latitude) <= 90.0) & (np.abs(longitude) <= 180.0)


def haversine(latitude: Any, longitude: Any, other_latitude: Any, other_longitude: Any) -> Any:
    """The distance of two places in kilometres, on a sphere."""
    first, second = np.radians(latitude), np.radians(other_latitude)
    north = _sin((second - first) / 2)
    east = _sin(np.radians(np.subtract(other_longitude, longitude)) / 2)
    part = north * north + _cos(first) * _cos(second) * (east * east)
    # At the other end of the world, rounding can make it more than all.
    distance = 2 * RADIUS * _asin(np.sqrt(np.minimum(part, 1.0)))
    are_places = _is_place(latitude, longitude) & _is_place(other_latitude, other_longitude)
    return np.where(are_places, distance, np.nan)


def geohash(length: Any) -> Callable[[Any, Any], list[str | None]]:
    """Columns of latitudes and longitudes to geohashes with so many characters, 12 at most."""
    shifts = np.arange(55, 55 - 5 * length, -5).astype(np.uint64)

    def texts(latitudes: Any, longitudes: Any) -> list[str | None]:
        are_places = _is_place(latitudes, longitudes)
        north, east = _cell(latitudes, are_places, 90.0), _cell(longitudes, are_places, 180.0)
        bits = _spread(north) | _spread(east) << np.uint64(1)
        letters = _LETTERS[(bits[:, None] >> shifts & np.uint64(31)).astype(np.intp)]
        found = letters.view(f"S{length}")[:, 0].astype("U").tolist()
        return [text if known else None for text, known in zip(found, are_places.tolist(), strict=True)]

    return texts


def _cell(degrees: Any, are_places: Any, most: float) -> Any:
    """Which of the 2 ** 30 equal parts from `-most` to `most` it is in; what is between two is in the higher one."""
    degrees = np.where(are_places, degrees, 0.0)
    width = most / 2.0 ** (_BITS - 1)
    cell = np.floor((degrees + most) / width)
    # The sum may have been rounded over a border; borders themselves are exact in a float64.
    cell -= degrees < cell * width - most
    return np.minimum(cell, 2.0**_BITS - 1).astype(np.uint64)


def _spread(bits: Any) -> Any:
    """A zero before each bit."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
    return bits
