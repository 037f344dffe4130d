"""A model ready to score: loaded from checked bytes, warmed, and proven to give XGBoost's own bits."""

from __future__ import annotations

import copy
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import ModelError
from gridscore.models.description import describe_document, tree_weights
from gridscore.models.document import read_document
from gridscore.models.forest import Forest
from gridscore.models.proof import gives_same_bits, some_rows
from gridscore.models.shapley import Shapley
from gridscore.models.version import signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.models.description import Description
    from gridscore.models.version import ModelVersion

    _Contributions = Callable[[np.ndarray, np.ndarray | None], np.ndarray]

_log = logging.getLogger(__name__)

# As in pyproject.toml. 3.0 reads the base score of a model that 3.1 has saved as another number, without a word.
OLDEST_XGBOOST = (3, 2)

WARM_UP = (1, 16, 256, 1024)  # rows of the batches that a model predicts before it goes live
_PROBE_CELLS = 1 << 21
_PROOF_ROWS = 64  # whose contributions are compared with XGBoost's
_PROOF_TOLERANCE = 1e-3  # of the largest: XGBoost adds in float32


class LoadedModel:
    """A version in memory. Get one from `load`.

    `is_compiled`: whether our own compiled loop predicts, which gives XGBoost's bits in less time.
    """

    def __init__(self, version: ModelVersion, booster: Any, description: Description) -> None:
        self.version = version
        self._booster = booster
        self._types = list(description.feature_types) or None
        # In place, the trees of `dart` are summed in another order (XGBoost 3.2): the last bits would differ. And
        # `gblinear` does not predict in place.
        self._predict = self._predict_in_place if description.booster == "gbtree" else self._predict_by_copy
        self.is_compiled = False
        self._forest: Forest | None = None
        self._contributions: _Contributions | None = None

    @classmethod
    def load(cls, version: ModelVersion, payload: bytes) -> LoadedModel:
        """Check the bytes, load them and warm the model up. Takes a while: not for the event loop.

        Raises ModelError if the bytes are not those of this version, not a model, or would not score as XGBoost does.
        """
        if len(payload) != version.size or hashlib.sha256(payload).hexdigest() != version.sha256:
            raise ModelError(
                f"The bytes of {version} are not what was pushed: their SHA-256 differs.",
                "Push the model again, as a new version.",
            )
        source = f"The model {version}"
        document = read_document(payload, source)
        return cls.prepare(version, payload, document, describe_document(document, len(payload), source), source)

    @classmethod
    def prepare(
        cls, version: ModelVersion, payload: bytes, document: dict[str, Any], description: Description, source: str
    ) -> LoadedModel:
        """Load bytes that were hashed, read and described already, and warm the model up.

        Raises ModelError if they are not of this version, or would not score as XGBoost does.
        """
        names = signature(description, version.categories, source).features
        if names != version.features or description.feature_types != version.feature_types:
            raise ModelError(
                f"{source} has other features than the grid says of it.", "Push the model again, as a new version."
            )
        if version.outputs not in (None, description.outputs) or version.classes not in (None, description.classes):
            raise ModelError(
                f"{source} has other outputs than the grid says of it.", "Push the model again, as a new version."
            )
        booster = parse(payload, source)
        if description.booster == "dart":
            _check_weights(booster, document, description, source)
        model = cls(version, booster, description)
        model._warm_up(description, source)
        model._compile(document, source)
        return model

    def predict(self, matrix: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
        """Scores of a C-contiguous float32 matrix, bit for bit those of `Booster.predict`.

        `matrix`: shape (n, features); `margins`: float32 of shape (n,): what each score begins with, instead of the
        model's base score. Returns: float32 of shape (n,), or (n, k) for a model with k outputs.
        """
        return self._predict(matrix, margins)

    def contributions(self, matrix: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
        """What each feature adds to the margin, its SHAP values: about a hundred times as slow as a prediction.

        XGBoost computes those of models that the compiled loop does not take: nearly a thousand times as slow.

        Returns: float32 of shape (n, k, features + 1) for a model with k outputs; the last of a row is the base value.
        """
        if self._contributions is None:
            self._contributions = self._proven_contributions()
        return self._contributions(matrix, margins)

    def _proven_contributions(self) -> _Contributions:
        """The compiled loop, if it agrees with XGBoost on rows that reach leaves of all kinds."""
        if self._forest is None:
            return self._contributions_by_xgboost
        # What most models never need is not kept of them.
        document = read_document(bytes(self._booster.save_raw("ubj")), f"The model {self.version}")
        if (shapley := Shapley.of(self._forest, document)) is None:
            return self._contributions_by_xgboost
        base = self._forest.base

        def compiled(matrix: np.ndarray, margins: np.ndarray | None) -> np.ndarray:
            rows = np.ascontiguousarray(matrix, np.float32)
            return shapley.contributions(rows, base if margins is None else margins)

        rows = some_rows(self._forest, _PROOF_ROWS)
        ours, theirs = compiled(rows, None), self._contributions_by_xgboost(rows, None)
        # The base value may be much larger than what features add.
        alike = (
            np.abs(ours[..., part] - theirs[..., part]).max() <= _PROOF_TOLERANCE * np.abs(theirs[..., part]).max()
            for part in (slice(-1), slice(-1, None))
        )
        if all(alike):  # which no NaN is
            return compiled
        _log.warning("%s: the compiled SHAP values are not those of XGBoost, which is taken instead", self.version)
        return self._contributions_by_xgboost

    def _contributions_by_xgboost(self, matrix: np.ndarray, margins: np.ndarray | None) -> np.ndarray:
        data = self._matrix(matrix, margins)
        found: np.ndarray = self._booster.predict(data, pred_contribs=True, strict_shape=True, validate_features=False)
        return found

    def reference(self) -> LoadedModel:
        """The same model, predicting by `Booster.predict` itself: slow, and nothing of ours is in between."""
        other = copy.copy(self)
        other._predict, other.is_compiled, other._forest = self._predict_by_copy, False, None  # noqa: SLF001 -- one of us
        other._contributions = None  # noqa: SLF001
        return other

    def _predict_in_place(self, matrix: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
        scores: np.ndarray = self._booster.inplace_predict(matrix, base_margin=margins, validate_features=False)
        return scores

    def _predict_by_copy(self, matrix: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
        scores: np.ndarray = self._booster.predict(self._matrix(matrix, margins), validate_features=False)
        return scores

    def _matrix(self, matrix: np.ndarray, margins: np.ndarray | None) -> Any:
        import xgboost

        return xgboost.DMatrix(
            matrix, base_margin=margins, feature_types=self._types, enable_categorical=True, nthread=1
        )

    def _compile(self, document: dict[str, Any], source: str) -> None:
        """Predict by the compiled loop, if the model is one for it and every bit is the same."""
        forest = Forest.of(document)
        if forest is None:
            return
        if not gives_same_bits(forest, self._predict):
            _log.warning("%s: the compiled loop gives other bits than XGBoost, which is taken instead", source)
            return
        self._predict, self._forest, self.is_compiled = forest.predict, forest, True

    def _warm_up(self, description: Description, source: str) -> None:
        """Predict once per batch size, and compare with `Booster.predict` bit for bit."""
        import xgboost

        rows = probe(description, WARM_UP[-1])
        try:
            with xgboost.config_context(verbosity=0):  # it will drop `gblinear` one day, and says so at the first use
                expected = self._predict_by_copy(rows)
            if expected.size != len(rows) * description.outputs:
                raise ModelError(
                    f"{source} gives scores of the shape {expected.shape} for {len(rows)} rows, but says that it has "
                    f"{description.outputs} outputs.",
                    "Save it anew from training.",
                )
            for size in WARM_UP:
                scores = self.predict(rows[:size])
                if scores.dtype != np.float32 or scores.tobytes() != expected[:size].tobytes():
                    raise ModelError(
                        f"{source} does not score as `Booster.predict` does on {len(scores)} rows.",
                        "Please report this with the model file: it is a defect, of Gridscore or of XGBoost "
                        f"{xgboost.__version__}.",
                    )
        except xgboost.core.XGBoostError as error:
            raise ModelError(f"{source} cannot predict: {first_line(error)}") from None


def parse(payload: bytes, source: str) -> Any:
    """A Booster of bytes that `describe` has passed, for one thread. Raises ModelError if XGBoost refuses them."""
    import xgboost

    if tuple(map(int, xgboost.__version__.split(".")[:2])) < OLDEST_XGBOOST:
        oldest = ".".join(map(str, OLDEST_XGBOOST))
        raise ModelError(
            f"XGBoost {xgboost.__version__}, which is installed here, misreads the base score of models that newer "
            "versions save: scores would be wrong.",
            f"Install {oldest} or newer: pip install -U 'xgboost-cpu>={oldest}'",
        )
    try:
        # One thread: the worker has one core's worth of work, and more threads cost ten-fold on small batches
        # (xgboost#3042).
        # Silent: XGBoost 3.4 warns of each `dart` model that an older version has saved, which it reads well.
        with xgboost.config_context(verbosity=0):
            return xgboost.Booster({"nthread": 1}, model_file=bytearray(payload))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise ModelError(
            f"{source} cannot be read by XGBoost {xgboost.__version__}: {first_line(error)}",
            "Save it anew from training, with a version that is not newer than this one.",
        ) from None


def _check_weights(booster: Any, document: dict[str, Any], description: Description, source: str) -> None:
    """Refuse a `dart` model whose weights this XGBoost does not see: older ones pass over those of newer files."""
    import xgboost

    meant = tree_weights(document["learner"])
    try:
        saved = bytes(booster.save_raw("ubj"))
    except xgboost.core.XGBoostError as error:
        raise ModelError(f"{source} cannot be loaded: {first_line(error)}") from None
    seen = tree_weights(read_document(saved, source)["learner"])
    if seen is None or meant is None or not np.array_equal(seen, meant):
        raise ModelError(
            f"{source} has trees with weights (`dart`), which XGBoost {xgboost.__version__} passes over in a file that "
            f"XGBoost {description.xgboost_version} has saved: its scores would be wrong.",
            f"Run XGBoost {description.xgboost_version} or newer here, or train without `rate_drop`.",
        )


def probe(description: Description, count: int) -> np.ndarray:
    """Rows to try a model with: values of all magnitudes, category codes, and gaps. Always the same for a model.

    Fewer than asked for, if they have so many columns that they would take much memory.
    """
    generator = np.random.default_rng(count)
    shape = (min(count, max(16, _PROBE_CELLS // description.feature_count)), description.feature_count)
    rows = generator.choice((-1.0, 1.0), shape) * 10.0 ** generator.uniform(-4, 6, shape)
    for column, kind in enumerate(description.feature_types):
        if kind == "c":
            # One code more than the splits know: unseen categories have their own way down.
            rows[:, column] = generator.integers(0, description.highest_category.get(column, 1) + 2, len(rows))
    rows[generator.random(shape) < 0.1] = np.nan
    rows[:1] = np.nan
    return np.ascontiguousarray(rows, dtype=np.float32)


def first_line(error: Exception) -> str:
    """What XGBoost says, without its stack trace."""
    text = str(error).strip().split("\nStack trace:")[0].strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].split(": ", 1)[-1] if lines else type(error).__name__
