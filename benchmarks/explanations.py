"""`python -m benchmarks.explanations`: CPU of SHAP values, by the compiled loop and by XGBoost, without a cluster.

Of the work `card`'s model and of a larger one, by how many rows are explained together.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from benchmarks.work import HEAVY_TREES
from gridscore.cli.output import print_json, print_table
from gridscore.models.candidate import Candidate
from gridscore.models.loaded import LoadedModel
from gridscore.proving.bench import card

if TYPE_CHECKING:
    from collections.abc import Callable


def _us_a_row(work: Callable[[], object], rows: int, rounds: int) -> float:
    """The least of all rounds."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append((time.process_time() - began) * 1e6 / rows)
    return round(min(found), 2)


def _measure(trees: int, rounds: int) -> list[dict[str, float]]:
    job = card.card_job("explained", "results.explained")
    checked = Candidate.check(bytes(card.booster(job, trees).save_raw()), "explained", metrics=None, categories=None)
    model = LoadedModel.load(checked.version, checked.payload)
    draw = np.random.default_rng(1)
    found = []
    for rows in (1, 32, 1_024):
        matrix = (draw.normal(size=(rows, len(job.feature_names))) * 50).astype(np.float32)
        model.contributions(matrix)
        compiled = _us_a_row(lambda matrix=matrix: model.contributions(matrix), rows, rounds)  # type: ignore[misc]
        xgboost = _us_a_row(lambda matrix=matrix: model.reference().contributions(matrix), rows, rounds)  # type: ignore[misc]
        predict = _us_a_row(lambda matrix=matrix: model.predict(matrix), rows, rounds)  # type: ignore[misc]
        found.append(
            {"trees": trees, "rows": rows, "compiled_us": compiled, "xgboost_us": xgboost, "predict_us": predict}
        )
    return found


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, max=1_000)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what explaining a row costs.

    Example: python -m benchmarks.explanations
    """
    found = [each for trees in (card.TREES, HEAVY_TREES) for each in _measure(trees, rounds)]
    if as_json:
        print_json(found)
        return
    print_table(
        ("TREES", "ROWS", "COMPILED µs", "XGBOOST µs", "PREDICT µs"), [tuple(each.values()) for each in found], empty=""
    )


if __name__ == "__main__":
    typer.run(main)
