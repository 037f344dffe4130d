"""`python -m benchmarks.report`: `docs/performance.md`, its plots and the README's paragraph, from an outcome."""

from __future__ import annotations

import functools
import shlex
import statistics
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jinja2
import typer

from benchmarks import judgement, sections, view
from benchmarks.display import duration
from benchmarks.markdown import NOT_MEASURED, number, spread_text, table
from benchmarks.outcome import FORMAT, Latency, Outcome, Spread, Status
from gridscore.cli.output import errors
from gridscore.errors import GridscoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "full.json"
"""The outcome that the committed page is generated from: a copy of `latest.json` after a whole `make bench`."""

PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
TRIED = ROOT / "benchmarks" / "tried.md"
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # noqa: S701 -- Markdown, of our own figures
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_GIB = 1 << 30


def main(
    result: Annotated[Path, typer.Argument(metavar="[FILE]", help="Written by python -m benchmarks.")] = RESULT,
    to: Annotated[Path, typer.Option("--to", metavar="PAGE", help="Plots go to a folder beside it.")] = PAGE,
) -> None:
    """Write the page with its plots; with the project's own page, the paragraph in the README too.

    Example: python -m benchmarks.report benchmarks/results/latest.json --to out/performance.md
    """
    from benchmarks.plots import draw

    outcome = load(result)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page(outcome, TRIED.read_text(encoding="utf-8"), result.name, to.stem), encoding="utf-8")
    written = [to, *draw(outcome, to.parent / to.stem)]
    if to.resolve() == PAGE:
        README.write_text(with_paragraph(README.read_text(encoding="utf-8"), paragraph(outcome)), encoding="utf-8")
        written.append(README)
    for path in written:
        errors.print(f"Written: {path}", markup=False, highlight=False)


def load(path: Path) -> Outcome:
    """An outcome.

    Raises:
        UsageError: It cannot be read, or is none of this version.
    """
    try:
        outcome = Outcome.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is not an outcome of a benchmark: {error}", "Measure one: python -m benchmarks"
        ) from None
    if outcome.format != FORMAT:
        raise UsageError(f"{path} has format {outcome.format}, not {FORMAT}.", "Measure again: python -m benchmarks")
    return outcome


def page(outcome: Outcome, tried: str, source: str, folder: str = PAGE.stem) -> str:
    """The whole page.

    Args:
        outcome: What was measured.
        tried: The part that is written by hand, Markdown.
        source: Name of the file that the outcome was read from.
        folder: Of the plots, as seen from the page.
    """
    plots = view.plots(outcome)

    def plot(name: str, what: str) -> str:
        return _picture(folder, name, what) if name in plots else ""

    text = _ENVIRONMENT.get_template("performance.md.j2").render(
        outcome=outcome,
        source=f"[{source}](../benchmarks/results/{source})" if source == RESULT.name else f"`{source}`",
        about=_about(outcome),
        works=_works(outcome),
        others=_others(outcome),
        main=view.WORK,
        other_works=[work.name for work in outcome.works if work.name != view.WORK],
        title={work.name: work.title for work in outcome.works}.__getitem__,
        throughput=functools.partial(sections.throughput, outcome),
        floors=sections.floors(outcome),
        limits=sections.limits(outcome, view.WORK),
        stages=sections.stages(outcome),
        rates=view.rates(outcome),
        latency=functools.partial(sections.latency, outcome),
        saturations=sections.saturations(outcome),
        parts=sections.parts(outcome),
        spike_about=_spike_about(outcome),
        spikes=sections.spikes(outcome),
        growing=list(view.growth(outcome)),
        growing_titles=sections.GROWING,
        growth=functools.partial(sections.growth, outcome),
        not_measured=NOT_MEASURED,
        plot=plot,
        tuning=_tuning(outcome),
        tried=tried.strip(),
    )
    return _single_blank_lines(text)


def paragraph(outcome: Outcome | None) -> str:
    """What the README says; without figures if nothing has been measured."""
    makes = (
        "`make bench` measures Gridscore beside what one would use instead (Hazelcast Jet's `mapUsingPython`, Kafka, an"
        " entry listener, a web server) and beside its own limits, in one run on the same work"
    )
    if outcome is None:
        return _wrapped(f"{makes}; `python -m benchmarks.report FILE` makes a page of it, with plots.")
    verdicts = [each for each in judgement.judge(outcome)[:-1] if each.reached is not None]
    reached = sum(1 for each in verdicts if each.reached)
    said = [*_ratios_said(outcome), *_latency_said(outcome)]
    where = f"In a run of {duration(outcome.seconds)} on {outcome.machine.cores} cores shared by all of it"
    figures = f" {where}, Gridscore {'; it '.join(said)}." if said else ""
    floors = f" Of the {len(verdicts)} floors it set itself, {reached} were reached." if verdicts else ""
    return _wrapped(
        f"{makes}.{figures}{floors} [Performance](docs/performance.md) has all figures with their spread, how far"
        " runs differ, where each microsecond goes, what is not shown, and what was tried."
    )


def with_paragraph(readme: str, text: str) -> str:
    """A README with another paragraph between its markers.

    Raises:
        UsageError: It has no markers.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError("README.md has no place for the paragraph.", f"Write {BEGIN} and {END} where it should be.")
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def _ratios_said(outcome: Outcome) -> list[str]:
    ours = outcome.throughput_of(view.WORK, view.OURS)
    said = []
    for system, what in ((judgement.JET, "lookups in a dictionary"), ("jet-imap", "lookups by `mapUsingIMap`")):
        theirs = outcome.throughput_of(view.WORK, system)
        if ours is None or theirs is None or {ours.status, theirs.status} != {Status.MEASURED}:
            continue
        ratio, cpu = ours.ratio(theirs), ours.ratio(theirs, "cpu_us_per_event")
        if ratio is not None and cpu is not None:
            said.append(
                f"scores {spread_text(ratio)} times as many events a second as Jet with {what}, with"
                f" {spread_text(cpu)} of its CPU for an event"
            )
    return said


def _latency_said(outcome: Outcome) -> list[str]:
    rate = judgement.RATES[-1]
    ours, theirs = (view.latency_rounds(outcome, name, rate) for name in (view.OURS, judgement.JET))
    if not ours or not theirs or any(each.saturated for each in (*ours, *theirs)):
        return []

    def said(rounds: list[Latency], field: str) -> str:
        return spread_text(Spread.of(getattr(each, field) for each in rounds))

    return [
        (
            f"shows results at {rate:,.0f} events a second after {said(ours, 'p50_ms')} ms (p50) and"
            f" {said(ours, 'p99_ms')} ms (p99), Jet after {said(theirs, 'p50_ms')} and {said(theirs, 'p99_ms')} ms"
        )
    ]


def _about(outcome: Outcome) -> str:
    machine, settings = outcome.machine, outcome.settings
    commit, memory = outcome.git_commit, f"{machine.memory_bytes / _GIB:.0f} GiB"
    rows = [
        ("when", f"{outcome.started_at}, {duration(outcome.seconds)}"),
        ("command", f"`{shlex.join(['python', '-m', 'benchmarks', *_public(outcome.command)])}`"),
        ("commit", f"`{commit.rstrip('+')}`" + (", with changes" if commit.endswith("+") else "") if commit else ""),
        ("machine", f"{machine.processor}, {machine.cores} cores, {memory}, {machine.system}, {machine.python}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(outcome.versions.items()))),
        ("settings", ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in settings.items())),
    ]
    return table(("", ""), [row for row in rows if row[1]])


def _public(command: Sequence[str]) -> list[str]:
    """Arguments without where the results went, which is of that machine."""
    return [
        word
        for before, word in zip(["", *command], command, strict=False)
        if "--out" not in {before, word} and not word.startswith("--out=")
    ]


def _plain(value: str | float) -> str:
    return (
        ("yes" if value else "no")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else f"{value}"
    )


def _works(outcome: Outcome) -> str:
    if not outcome.works:
        return NOT_MEASURED
    return table(
        ("work", "events of a run", "of bytes", "features", "trees", "users looked up in", ""),
        (
            (
                f"`{each.name}`", f"{each.events:,}", f"{each.event_bytes:,}", f"{each.features:,}", f"{each.trees:,}",
                f"{each.users:,}", each.title,
            )
            for each in outcome.works
        ),
    )  # fmt: skip


def _others(outcome: Outcome) -> str:
    cores = [run.others_cores for each in outcome.throughput for run in each.runs]
    if not cores:
        return "How busy others kept the machine: not measured in this run."
    return (
        f"Other processes on the machine used {number(statistics.median(cores))} cores in the median of all"
        f" runs of throughput, {number(max(cores))} at most."
    )


def _spike_about(outcome: Outcome) -> str:
    spike = next((each for each in outcome.spikes if each.bins), None)
    if spike is None:
        return ""
    return (
        f"{number(spike.rate_per_s)} events a second, {spike.factor:g} times as many for"
        f" {spike.spike_end_s - spike.spike_begin_s:g} seconds, and the old rate again. A system is as before when"
        " the p99 of each half second is no worse than in the worst one before the spike, and stays so."
    )


def _tuning(outcome: Outcome) -> str:
    if not outcome.systems:
        return NOT_MEASURED
    return "\n".join(f"- **`{each.name}`**: {each.title}. {each.tuning}".rstrip() for each in outcome.systems)


def _picture(folder: str, name: str, what: str) -> str:
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'  <img alt="{what}" src="{folder}/{name}.svg">\n</picture>'
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _single_blank_lines(text: str) -> str:
    """What parts that are missing leave behind is taken away."""
    lines: list[str] = []
    for line in text.splitlines():
        if line or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    try:
        typer.run(main)
    except GridscoreError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(2) from None
