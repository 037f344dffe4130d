"""Features offline: the matrix that the stream would have seen, from a history and tables of the lookups.

Each row becomes the JSON of an event, is decoded by the same decoder and goes through the same plan as live, so that
training needs no second implementation and cannot differ in a bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.errors import ModelError, TableError
from gridscore.features.baseline import baseline_of, sample
from gridscore.features.definitions import (
    ATTRIBUTE,
    TRAINING,
    Attribute,
    Definitions,
    Training,
    definitions_of,
    learnt_of,
)
from gridscore.features.encodings import FOLDS, Encoding, Texts, encodings_of, folds_of
from gridscore.features.events import EventDecoder
from gridscore.features.functions import Functions
from gridscore.features.lookup_table import LookupHistory, LookupTable
from gridscore.features.plan import Decider, FeaturePlan
from gridscore.features.program import Program, class_numbers
from gridscore.features.windows import History, why_late

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.features.encodings import Learnt
    from gridscore.features.windows import Windows
    from gridscore.job import Job

MARGINS = "base_margin"  # the column of a Parquet file with the margins, if the job has any
SKIP_BAD = "`--skip-bad` leaves such rows out and counts them."
_SERVED = "gridscore.served"
_BATCH = 8_192


@dataclass(frozen=True, slots=True)
class OfflineMatrix:
    """The features of a history.

    Attributes:
        names: Of the features, in the order of the columns.
        values: A row an event, float32.
        categories: For each feature made with `category`, the values in the order of their codes. Encodings are in
            `definitions`.
        rows: Which rows of the history these are; all of them, unless bad ones were skipped.
        skipped: Bad rows left out.
        kept: Columns of the history to keep beside the features, such as the label.
        looked_up: By lookup: how many entries it has, and how many events had none.
        margins: The margin of each event, float32, for `base_margin` of a DMatrix; None if the job has none.
        margin: Its expression.
        definitions: How the features were made; None of a file that an earlier version wrote.
        served: Features made of labels that other rows teach, as the stream has them: of the rows that a baseline is
            made of, by name.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    categories: dict[str, tuple[str, ...]]
    rows: NDArray[np.intp]
    skipped: int = 0
    kept: pd.DataFrame | None = None
    looked_up: dict[str, dict[str, int]] = field(default_factory=dict)
    margins: NDArray[np.float32] | None = None
    margin: str = ""
    definitions: Definitions | None = None
    served: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def learnt(self) -> dict[str, Learnt]:
        """Categories and encodings, by feature."""
        return learnt_of(self.categories, self.definitions)

    @property
    def attribute(self) -> str:
        """Names, categories and definitions as JSON, as they travel with a model."""
        attribute = Attribute(self.names, self.categories, self.margin, self.definitions)
        return msgspec.json.encode(attribute).decode()

    def attach(self, model: Any, *, labels: Sequence[str] = ()) -> None:
        """Put names, categories and definitions into a Booster, so that they are saved with it and pushed with it.

        Also what is known of the training: a fingerprint, hyper-parameters, and how the values and scores are spread.

        Args:
            model: The Booster, or an estimator of `xgboost.sklearn`.
            labels: Names of its classes in the order of their numbers, as `LabelEncoder().classes_` has them.

        Raises:
            ModelError: It was trained on other features, on these in another order, or with other codes, or is an
                estimator that takes another number than NaN for missing.
        """
        booster = booster_of(model)
        names = booster.feature_names
        if names is None:
            booster.feature_names = list(self.names)
        elif names != list(self.names):
            same = set(names) == set(self.names) and len(names) == len(self.names)
            raise ModelError(
                "The model was trained on these features in another order."
                if same
                else f"The model was trained on other features: {_few(names)}.",
                f"Attach the matrix that it was trained on; its columns are {_few(self.names)}.",
            )
        self._check_codes(booster)
        booster.set_attr(**{ATTRIBUTE: self.attribute})
        live = self._as_served()
        seen = baseline_of(self.names, live.values, self.categories, _scores(live, model), len(self))
        training = Training(self.fingerprint, len(self), parameters_of(booster), tuple(map(str, labels)), seen)
        booster.set_attr(**{TRAINING: msgspec.json.encode(training).decode()})

    def dmatrix(self, label: Any = None, rows: Any = None, **options: Any) -> Any:
        """The matrix, or some rows of it, as an `xgboost.DMatrix` to train with.

        It has the names of the features, the margins if the job has any, and the type `c` for what `category` made, so
        that XGBoost splits by sets of categories and not by the order of their codes.

        Args:
            label: A kept column's name, or a value for each row of the whole matrix.
            rows: What numpy takes for rows: a slice, a mask, numbers. Default: all.
            options: Of `DMatrix`, such as `weight`, for the chosen rows.

        Raises:
            TableError: The column was not kept.
        """
        import xgboost

        chosen = slice(None) if rows is None else rows
        if isinstance(label, str):
            if self.kept is None or label not in self.kept:
                raise TableError(f"The column `{label}` was not kept.", f"offline_matrix(..., keep=[{label!r}])")
            label = self.kept[label].to_numpy()
        if label is not None:
            options["label"] = np.asarray(label)[chosen]
        if self.margins is not None:
            options.setdefault("base_margin", self.margins[chosen])
        types = ["c" if name in self.categories else "float" for name in self.names]
        options = {"feature_names": list(self.names), "feature_types": types, "enable_categorical": True, **options}
        return xgboost.DMatrix(self.values[chosen], **options)

    def predict(self, model: Any, rows: Any = None) -> NDArray[np.float32]:
        """What a model gives for the matrix, or some rows of it, as live: with margins, by the rounds that are pushed.

        Args:
            model: The Booster, or an estimator of `xgboost.sklearn`, with its training matrix attached.
            rows: As for `dmatrix`.

        Raises:
            ModelError: It was trained on other features, or with other codes of a category, as a matrix of another
                history has; or there are categories, and no matrix is attached.
        """
        booster = booster_of(model)
        known = _attached(booster)
        if (names := booster.feature_names) != list(self.names):
            raise ModelError(f"The model was trained on other features: {_few(names or ['f0', '…'])}.")
        if self.learnt and known is None:
            raise ModelError("The codes of the model are unknown.", "Attach the matrix that it was trained on.")
        for name, ours in self.learnt.items():
            if known is not None and (theirs := known.get(name)) != ours:
                raise ModelError(
                    f"The model has other codes of `{name}` than the matrix: {_few(theirs or ())}; here {_few(ours)}.",
                    "Make the matrix with the model's: `offline_matrix(…, categories=model)`.",
                )
        return self._predict(model, rows)

    def _as_served(self) -> OfflineMatrix:
        """The rows that a baseline is made of, as the stream would see them."""
        rows = sample(len(self))
        values = self.values[rows].copy()
        for name, column in self.served.items():
            values[:, self.names.index(name)] = column
        margins = None if self.margins is None else self.margins[rows]
        return replace(self, values=values, rows=self.rows[rows], margins=margins, kept=None, served={})

    def _predict(self, model: Any, rows: Any) -> NDArray[np.float32]:
        booster = booster_of(model)
        best = booster.attr("best_iteration")
        takes_all = booster is model or model.booster == "gblinear" or best is None or not best.isdecimal()
        rounds = (0, 0) if takes_all else (0, int(best) + 1)
        data = self.dmatrix(rows=rows, feature_types=booster.feature_types)
        scores: NDArray[np.float32] = booster.predict(data, iteration_range=rounds, validate_features=False)
        return scores

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, values and margins, in hexadecimal digits: of the same data it is the same."""
        digest = hashlib.sha256(msgspec.json.encode((self.names, self.categories, self.values.shape)))
        digest.update(np.ascontiguousarray(self.values).data)
        if self.margins is not None:
            digest.update(np.ascontiguousarray(self.margins).data)
        return digest.hexdigest()

    def _check_codes(self, booster: Any) -> None:
        """Refuse a model that goes on from one with other codes (`xgb_model=`), whose trees it still has."""
        earlier = _attached(booster) or {}
        for name, ours in self.learnt.items():
            theirs = earlier.get(name, ours)
            mine = ours[: len(theirs)] if isinstance(ours, tuple) and isinstance(theirs, tuple) else ours
            if theirs != mine:
                raise ModelError(
                    f"The model was attached to other codes of `{name}`: it has {_few(theirs)}; the matrix "
                    f"{_few(ours)}.",
                    "Its trees from before would take one category for another. Make the matrix with the categories of "
                    "the model that it goes on from (`--categories-from`). If it does not go on from one: "
                    f"`booster.set_attr({ATTRIBUTE}=None)`, then attach.",
                )

    def to_parquet(self, path: Path | str) -> None:
        """Write features, margins (as `base_margin`) and kept columns; :attr:`attribute` goes into the metadata.

        Raises:
            TableError: The file cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: pa.array(self.values[:, index]) for index, name in enumerate(self.names)}
        if self.margins is not None:
            columns[MARGINS] = pa.array(self.margins)
        for name, kept in () if self.kept is None else self.kept.items():
            try:
                columns[str(name)] = pa.Array.from_pandas(kept)
            except (ValueError, pa.ArrowException) as error:
                raise TableError(f"The column `{name}` cannot be kept in a Parquet file: {error}.") from None
        table = pa.table(columns)
        served = msgspec.msgpack.encode({name: column.tobytes() for name, column in self.served.items()})
        table = table.replace_schema_metadata({ATTRIBUTE: self.attribute, _SERVED: served})
        try:
            parquet.write_table(table, path)
        except OSError as error:
            raise TableError(f"`{path}` cannot be written: {error.strerror or error}.") from None

    @classmethod
    def from_parquet(cls, path: Path | str) -> OfflineMatrix:
        """Read what :meth:`to_parquet` wrote.

        Raises:
            TableError: It cannot be read, or is not such a file.
        """
        import pyarrow as pa
        from pyarrow import parquet

        attribute = _parquet_attribute(Path(path))
        names, margin = attribute.features, attribute.margin
        try:
            table = parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise TableError(f"`{path}` cannot be read: {error}.") from None
        values = np.empty((table.num_rows, len(names)), np.float32)
        for index, name in enumerate(names):
            values[:, index] = table.column(name).to_numpy()
        margins = table.column(MARGINS).to_numpy() if margin else None
        others = [name for name in table.column_names if name not in names and not (margin and name == MARGINS)]
        kept = table.select(others).to_pandas() if others else None
        return cls(
            names,
            values,
            attribute.categories,
            np.arange(len(values)),
            kept=kept,
            margins=margins,
            margin=margin,
            definitions=attribute.definitions,
            served=_served_of((table.schema.metadata or {}).get(_SERVED.encode(), b""), names, len(values)),
        )


def _scores(matrix: OfflineMatrix, model: Any) -> NDArray[np.float32] | None:
    """What a model gives for a matrix; None if it cannot predict."""
    import xgboost

    try:
        with xgboost.config_context(verbosity=0):
            scores = matrix.predict(model)
    except (xgboost.core.XGBoostError, ValueError, TypeError):
        return None
    return scores if len(matrix) else None


def _served_of(packed: bytes, names: Sequence[str], rows: int) -> dict[str, NDArray[np.float32]]:
    """As `to_parquet` has packed it; nothing of a file by an earlier version."""
    try:
        found = msgspec.msgpack.decode(packed or b"\x80", type=dict[str, bytes])
        columns = {name: np.frombuffer(column, np.float32) for name, column in found.items() if name in names}
    except (msgspec.DecodeError, ValueError):
        return {}
    length = len(range(rows)[sample(rows)])
    return {name: column for name, column in columns.items() if len(column) == length}


def _attached(booster: Any) -> dict[str, Learnt] | None:
    """The categories and encodings that were attached to a model; None if there is nothing that can be read."""
    try:
        return msgspec.json.decode(booster.attr(ATTRIBUTE) or "", type=Attribute).learnt
    except msgspec.DecodeError:
        return None


# Other names of hyper-parameters.
_TWICE = frozenset(("learning_rate", "min_split_loss", "reg_alpha", "reg_lambda", "updater_seq"))


def parameters_of(booster: Any) -> dict[str, str]:
    """The hyper-parameters of a Booster that are not XGBoost's defaults, if this process has trained it.

    A file does not hold them: a Booster that was loaded has the defaults.
    """
    import xgboost

    try:
        loaded = xgboost.Booster(model_file=booster[:1].save_raw("ubj"))
        defaults, chosen = _flat(loaded), _flat(booster)
    except (xgboost.core.XGBoostError, ValueError, IndexError, KeyError):
        return {}  # it is linear, or has no rounds
    found = {key: text for key, text in chosen.items() if text != defaults.get(key, text)}
    return dict(sorted(found.items())[:200])


def _flat(booster: Any) -> dict[str, str]:
    found: dict[str, str] = {}

    def walk(value: dict[str, Any]) -> None:
        for key, each in value.items():
            if isinstance(each, dict) and not key.endswith("_model_param"):
                walk(each)
            elif isinstance(each, str) and key not in _TWICE and len(key) <= 100 and len(each) <= 100:
                found[key] = each

    learner = json.loads(booster.save_config())["learner"]
    walk({"booster": learner["gradient_booster"], "train": learner["learner_train_param"]})
    return found


def booster_of(model: Any) -> Any:
    """The Booster of an estimator; anything else as it is.

    Raises:
        ModelError: The estimator takes another number than NaN for missing, or was not fitted; or it is the last step
            of a pipeline.
    """
    if (steps := getattr(model, "steps", None)) and hasattr(steps[-1][-1], "get_booster"):
        raise ModelError(
            "A pipeline cannot be pushed: its steps before the model would not be done in the cluster.",
            "Write these steps as `features` of the job file, train on the matrix that `gridscore features` makes of "
            "it, and push the model itself, `pipeline[-1]`. If they change nothing, push `pipeline[-1]` at once.",
        )
    if not hasattr(model, "get_booster"):
        return model
    if model.missing is not None and not math.isnan(model.missing):
        raise ModelError(
            f"The estimator takes {model.missing:g} for missing, and scoring takes only NaN for it.",
            "Train with `missing=nan`, the default, and put NaN where a value is missing.",
        )
    if not model.__sklearn_is_fitted__():
        raise ModelError("The model has not been fitted.", "Fit it first.")
    return model.get_booster()


def offline_matrix(
    job: Job,
    history: Any,
    lookups: Any = None,
    categories: Any = None,
    *,
    keep: Sequence[str] = (),
    label: str = "",
    skip_bad: bool = False,
    score: Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.float32]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> OfflineMatrix:
    """The features of a history, as the stream would see them.

    Args:
        history: A DataFrame with a column for each field of the schema, or the path of a file:
            CSV, Parquet or JSON lines.
        lookups: The lookups' tables: a directory with a file for each, or DataFrames or paths by name.
        categories: For each feature made with `category`, the values in the order of their codes; or the matrix, or the
            model with it attached, that has them. Without, they are learnt from the history: all values in it, sorted.
            So a second matrix, to test with, needs those of the first. The same goes for encodings.
        keep: Columns of the history to keep beside the features.
        label: Column of numbers that `target` learns from; it is kept, too. What a row has is learnt of other rows.
        skip_bad: Leave out rows that are not events of the schema, and entries whose key is not one, instead of
            raising.
        score: What gives the scores of a matrix and its margins, as a model's `predict` does: with it, the kept columns
            get each row's `score`, of several outputs `score.NAME` or `score.0`, its `label` and its `decision`, as
            live.
        on_progress: Called with the rows done and all rows to do; twice as many as the history has, if something is
            learnt.

    Raises:
        TableError: A file or column is missing, or a row is not an event of the schema, or has a key that is not one.
        ModelError: No matrix is attached to the model that has the categories.
        FunctionError: A Python function of the features is not allowed in this process, see `allow_python`; or what it
            gives for an event depends on the others.
    """
    import pandas as pd

    from gridscore.features import tables

    if isinstance(categories, OfflineMatrix):
        categories = categories.learnt
    elif categories is not None and not hasattr(categories, "items"):
        categories = _attached(booster_of(categories))
        if categories is None:
            raise ModelError("The codes of the model are unknown.", "Attach the matrix that it was trained on.")

    source = "the history"
    keep = list(dict.fromkeys([*keep, label] if label else keep))
    if not hasattr(history, "columns"):
        source = str(history)
        history = tables.read_history(history, job, keep=keep)
    clash = [name for name in keep if name in job.features]
    if clash:
        raise TableError(
            f"The column `{clash[0]}` cannot be kept: a feature has that name.", "The matrix has the feature already."
        )
    if job.margin is not None and MARGINS in [*keep, *job.features]:
        raise TableError(f"`{MARGINS}` is the column of the job's margin.", "Give the other column another name.")
    taken = [
        name
        for name in (*keep, *job.features)
        if name == "decision" or (name == "label" and job.classes) or f"{name}.".startswith("score.")
    ]
    if score is not None and taken:
        raise TableError(f"`{taken[0]}` is what the scored history has.", "Give the other column another name.")
    kept = tables.take_columns(history, keep, source) if keep else None
    tables.rows_as_json(history[:0], job.schema_, source)  # a missing column is best said before lookups are read
    filled = filled_tables(job, lookups, skip_bad=skip_bad)
    reading = _Reading(job, history, source, filled, skip_bad=skip_bad)

    total = len(history)
    unknown = Program(job, filled, None)
    learn = categories is None and bool(unknown.category_values() or unknown.encoded_values())
    report = on_progress or (lambda _done, _total: None)
    passes = 2 if learn else 1
    folds: list[FeaturePlan] = []
    if learn:
        labels = _labels(kept[label], source) if kept is not None and label else None
        categories, others = _learn(job, filled, reading, labels, lambda done: report(done, total * passes))
        folds = [FeaturePlan(job, filled, {**categories, **other}) for other in others]
    fold_of = folds_of(total if folds else 0)
    plan = FeaturePlan(job, filled, categories or {})
    decider = Decider(job, filled, categories or {}) if score is not None and job.decisions else None
    values = np.empty((total, len(plan.names)), np.float32)
    live: dict[int, NDArray[np.float32]] = {}  # columns in which a row has other numbers than in the stream
    rows = np.empty(total, np.intp)
    margins = None if job.margin is None else np.empty(total, np.float32)
    outcomes: list[pd.DataFrame] = []
    filled_to = 0
    for done, positions, batch in reading.batches():
        events = batch
        matrix, begins = plan.inputs(events)
        kept_rows = np.array(positions, np.intp)
        served = matrix.copy() if folds else matrix
        for fold, other in enumerate(folds):
            some = np.flatnonzero(fold_of[kept_rows] == fold)
            matrix[some], theirs = other.inputs(events.take(some))
            if begins is not None:
                begins[some] = theirs
        if margins is not None and begins is not None:
            lacking = np.flatnonzero(np.isnan(begins))
            if lacking.size and not skip_bad:
                raise TableError(
                    f"{source}, row {positions[lacking[0]] + 1}: the job's `margin` gives no number.",
                    "Such an event is not scored. Give `margin` a `default`, or leave such rows out with `--skip-bad`.",
                )
            matrix, served = np.delete(matrix, lacking, axis=0), np.delete(served, lacking, axis=0)
            kept_rows = np.delete(kept_rows, lacking)
            begins, events = np.delete(begins, lacking), events.without(lacking.tolist())
            margins[filled_to : filled_to + len(begins)] = begins
        values[filled_to : filled_to + len(matrix)] = matrix
        for place in range(len(plan.names)) if folds else ():
            if place not in live and not np.array_equal(served[:, place], matrix[:, place], equal_nan=True):
                live[place] = values[:, place].copy()
        for place, column in live.items():
            column[filled_to : filled_to + len(matrix)] = served[:, place]
        rows[filled_to : filled_to + len(matrix)] = kept_rows
        filled_to += len(matrix)
        if score is not None and events:
            outcomes.append(_outcome(job, decider, events, score(matrix, begins)))
        report(total * (passes - 1) + done, total * passes)
    columns = [] if kept is None else [kept.iloc[rows[:filled_to]].reset_index(drop=True)]
    if outcomes:
        columns.append(pd.concat(outcomes, ignore_index=True))
    mine = {name: known for name, known in (categories or {}).items() if name in job.features}
    encodings = {name: known for name, known in mine.items() if isinstance(known, Encoding)}
    watched = sample(filled_to)
    return OfflineMatrix(
        names=plan.names,
        values=values[:filled_to],
        categories={name: tuple(map(str, known)) for name, known in mine.items() if name not in encodings},
        rows=rows[:filled_to],
        skipped=total - filled_to,
        kept=pd.concat(columns, axis=1) if columns else None,
        margins=None if margins is None else margins[:filled_to],
        margin="" if job.margin is None else job.margin.expression,
        looked_up={
            name: {"entries": len(table), "bad": table.bad, "events": plan.looked_up[name], "missed": plan.missed[name]}
            for name, table in filled.items()
        },
        definitions=msgspec.structs.replace(definitions_of(job), encodings=encodings),
        served={plan.names[place]: column[:filled_to][watched].copy() for place, column in live.items()},
    )


def _labels(column: pd.Series, source: str) -> NDArray[np.float64]:
    """The label of each row, NaN where it is missing.

    Raises:
        TableError: They are not numbers.
    """
    try:
        labels: NDArray[np.float64] = column.to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise TableError(
            f"The column `{column.name}` of {source} has labels that are not numbers.",
            "`target` is the mean of the label: give a column of 0 and 1, or of other numbers.",
        ) from None
    return labels


def _outcome(job: Job, decider: Decider | None, events: EventColumns, scores: NDArray[np.float32]) -> pd.DataFrame:
    """What live results would say of these events; there is no decision where a score is not a finite number."""
    import pandas as pd

    by_row = scores.reshape(len(scores), -1)
    several = [f"score.{name}" for name in job.classes or range(by_row.shape[1])]
    frame = pd.DataFrame(by_row, columns=["score"] if scores.ndim == 1 else several)
    finite = np.isfinite(by_row).all(axis=1)
    scores = scores.copy()
    scores[~finite] = 0.0
    named: dict[str, tuple[Sequence[str], NDArray[np.intp]]] = {}
    if job.classes:
        named["label"] = job.classes, class_numbers(scores, len(job.classes))
    if decider is not None:
        named["decision"] = [decision.decision for decision in job.decisions], decider.decide(events, scores)
    for name, (texts, numbers) in named.items():
        frame[name] = list(map(texts.__getitem__, numbers.tolist()))
        frame.loc[~finite, name] = None
    return frame


class _Reading:
    """A history, batch by batch as events."""

    def __init__(
        self, job: Job, frame: pd.DataFrame, source: str, tables: Mapping[str, LookupTable], *, skip_bad: bool
    ) -> None:
        self._job = job
        self._schema = job.schema_
        self._decoder = EventDecoder(job)
        self._functions = Functions(job, tables) if job.has_functions else None
        self._frame = frame
        self._source = source
        self._skip_bad = skip_bad

    @property
    def rows(self) -> int:
        """All rows, bad ones among them."""
        return len(self._frame)

    def batches(self) -> Iterator[tuple[int, list[int], EventColumns]]:
        """Rows read so far; then the positions of this batch's rows and their events."""
        from gridscore.features import tables

        history = History(self._job)
        for start in range(0, len(self._frame), _BATCH):
            part = self._frame.iloc[start : start + _BATCH]
            payloads = list(tables.rows_as_json(part, self._schema, self._source))
            events, bad = good_rows(self._decoder, history, payloads, self._source, start, skip_bad=self._skip_bad)
            end = start + len(payloads)
            events = history.add(events)
            if history.late:
                raise TableError(
                    f"{self._source}: a row up to {end} {why_late(self._job)}",
                    f"Sort the history by `{self._job.order_by}`.",
                )
            rows = [row for row in range(len(payloads)) if row not in bad]
            if self._functions is not None and events:
                events, failed = self._functions.applied(events)
                if start == 0:
                    self._functions.require_row_wise(events)
                if failed and (self._job.used_windows or not self._skip_bad):
                    row, why = next(iter(failed.items()))
                    raise TableError(
                        f"{self._source}, row {start + rows[row] + 1}: {why}",
                        "Rows count from 1, without the header. "
                        + ("Its windows have seen the row: correct it." if self._job.used_windows else SKIP_BAD),
                    )
                rows = [row for place, row in enumerate(rows) if place not in failed]
            yield end, [start + row for row in rows], events


def good_rows(
    decoder: EventDecoder,
    windows: History | Windows,
    texts: Sequence[bytes],
    source: str,
    begin: int,
    *,
    skip_bad: bool,
) -> tuple[EventColumns, dict[int, str]]:
    """The events of some rows of a history, and the bad rows, each with what is wrong with it.

    Args:
        windows: What is to hold the events.
        begin: How many rows come before these.

    Raises:
        TableError: A row is bad, and bad ones are not to be skipped.
    """
    events, bad = decoder.decode_good(texts)
    if untimely := windows.untimely(events):
        rows = [row for row in range(len(texts)) if row not in bad]
        bad |= {rows[row]: f"{why}, which no window can hold" for row, why in untimely.items()}
        events = events.without(untimely)
    if bad and not skip_bad:
        row, why = min(bad.items())
        raise TableError(
            f"{source}, row {begin + row + 1}: {why}.",
            f"Rows count from 1, without the header. {SKIP_BAD}",
        )
    return events, bad


def filled_tables(job: Job, lookups: Any, *, skip_bad: bool = False) -> dict[str, LookupTable]:
    """The local tables of a job's lookups, by name, filled as `offline_matrix` says.

    Raises:
        TableError: One is missing, or cannot be read.
    """
    return {name: _fill(job, name, lookups, skip_bad=skip_bad) for name in job.lookups}


def _fill(job: Job, name: str, lookups: Any, *, skip_bad: bool) -> LookupTable:
    """The local table of a lookup, filled as the grid would fill it."""
    from gridscore.features import tables

    if lookups is None:
        raise TableError(
            f"The job has a lookup `{name}`, but no tables of lookups are given.",
            "Give the directory that holds them with `--lookups DIR`.",
        )
    if isinstance(lookups, str | Path):
        given: Any = tables.find_lookup(Path(lookups), name)
    elif name in lookups:
        given = lookups[name]
    else:
        raise TableError(f"There is no table for the lookup `{name}`.", f"Given are: {', '.join(lookups) or 'none'}.")
    source = f"the table of the lookup `{name}`"
    if isinstance(given, str | Path):
        source = str(given)
        given = tables.read_lookup(given, job, name)
    lookup = job.lookups[name]
    table = LookupTable(lookup) if lookup.valid_from is None else LookupHistory(lookup)
    for key, payload in tables.lookup_entries(given, job, name, source, skip_bad=skip_bad):
        table.put(key, payload)
    return table


def _learn(
    job: Job,
    filled: Mapping[str, LookupTable],
    reading: _Reading,
    labels: NDArray[np.float64] | None,
    report: Callable[[int], None],
) -> tuple[dict[str, Learnt], list[dict[str, Encoding]]]:
    """Categories and encodings; and, of each fold, those encodings of the label's means that the other folds teach.

    Raises:
        TableError: No row has a label, and something learns from it.
    """
    program = Program(job, filled, None)
    slots, encoded = program.category_values(), program.encoded_values()
    targets = [name for name, (_, how) in encoded.items() if how.name == "target"]
    if targets and (labels is None or not np.isfinite(labels).any()):
        none = "" if labels is None else ", and no row has one"
        raise TableError(
            f"The feature `{targets[0]}` is made with `target`, which is the mean of the label{none}.",
            "Name its column: `gridscore features --label COLUMN`, or `offline_matrix(…, label=COLUMN)`.",
        )
    found: dict[str, set[str | None]] = {name: set() for name in slots}
    texts = {name: Texts(how, reading.rows) for name, (_, how) in encoded.items()}
    good = np.zeros(reading.rows, np.bool_)
    for done, positions, events in reading.batches():
        if events:
            with np.errstate(all="ignore"):
                parts = program.run_in_parts(events)
            for name, (slot, _) in slots.items():
                found[name].update(*(values[slot] for values in parts))
            for name, (slot, _) in encoded.items():
                texts[name].add(positions, [text for values in parts for text in values[slot]])
            good[positions] = True
        report(done)
    # Numbers by their size, text by the alphabet.
    categories = {
        name: tuple(sorted((text for text in found[name] if text is not None), key=_by_size if numeric else str))
        for name, (_, numeric) in slots.items()
    }
    fold_of, learners = folds_of(reading.rows), {name: texts[name] for name in targets}
    others = [encodings_of(learners, good & (fold_of != fold), labels) for fold in range(FOLDS * bool(targets))]
    return {**categories, **encodings_of(texts, good, labels)}, others


def _few(learnt: Learnt) -> str:
    texts = learnt.texts if isinstance(learnt, Encoding) else learnt
    return f"{', '.join(texts[:10])}{', …' * (len(texts) > 10)}"


def _by_size(text: str) -> tuple[float, str]:
    """Beyond 2^53, one float stands for several numbers."""
    return float(text), text


def _parquet_attribute(path: Path) -> Attribute:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise TableError(f"There is no file `{path}`.") from None
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"`{path}` cannot be read: {error}.") from None
    if (found := metadata.get(ATTRIBUTE.encode())) is None:
        raise TableError(f"`{path}` is not a matrix that `gridscore features` made: it has no categories.")
    try:
        return msgspec.json.decode(found, type=Attribute)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TableError(f"The names and categories in `{path}` cannot be read.") from None
