"""The blocks of code in the pages: each is run or says why not; commands, Python, JSON and job files are right."""

import ast
import itertools
import json
import re
import shlex

import pytest
import typer
import yaml
from pages import PAGES, ROOT, RUN, blocks_of, commands_of, prose_of

from gridscore.cli import _commands
from gridscore.cli.plugs import command_of
from gridscore.job import parse_job
from gridscore.sinks import base as sinks
from gridscore.sources import base as sources

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
KNOWN = {*RUN, "yaml", "json", "html", "sql", "text"}

PLUGS = {"source": sources, "sink": sinks}
ENDS = ("&", "&&", "||", "|", ">", ">>", ";")

JOB = """\
job: page
events: events.page
schema:
  amount: float
  customer: string
  card: string?
  merchant: string
  entry: string
  chain: string
  shop: string
  carrier: string
  origin: string
  dest: string
  tailnum: string?
  dep_delay: float?
  distance: float
  air_time: float
  policy_id: string
  time: timestamp
  time_hour: timestamp
  country: string
  limit: float
lookups:
  customer: {map: lookups.customers, key: customer, fields: {limit: float}}
  plane: {map: lookups.planes, key: tailnum, fields: {year: float?}}
  policy: {map: lookups.policies, key: policy_id, fields: {exposure: float}}
  weather: {map: lookups.weather, key: [origin, time_hour], fields: {wind_speed: float?, wind_dir: float?}}
features: {amount: amount, limit: customer.limit, share: amount / customer.limit}
model: page
results: results.page
decisions: [{decision: decline, at_least: 0.9}, {decision: approve}]
labels: {map: labels.page}
"""
"""What the pages' pieces of job files are pieces of."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is_and_who_runs_it(page):
    assert re.findall(r"(?<=\n\n) {4}\S.*", prose_of(page)) == [], "a block without fences: nothing can tell what it is"
    blocks = list(blocks_of(page))
    assert page.read_text().count("\n```") == 2 * len(blocks)
    for block in blocks:
        assert block.language in KNOWN, block
        assert not block.mark or block.is_marked, (block, block.mark)
        assert block.mark != "not run: ", block
        if block.run_by:
            assert (ROOT / block.run_by).exists(), block
            assert page.stem.lower() in (ROOT / block.run_by).read_text().lower(), block


def lines():
    """Each command, and whether it is whole: in a text it may be cut short."""
    for block in BLOCKS:
        if block.language == "sh" and ROOT / "examples" not in block.page.parents:  # their kinds are not installed
            for command in commands_of(block.text):
                found = re.search(r"(?:^|\s|/)(gridscore (?!')\S.*)", command)
                if found and "pip install" not in command:
                    yield pytest.param(found[1], True, id=f"{block}: {found[1][:60]}")
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # of other versions, too
            continue
        for piece in dict.fromkeys(re.findall(r"`(gridscore [a-z][^`]*)`", prose_of(page))):
            if not re.search(r"[…\[]|KIND", piece):
                yield pytest.param(piece, False, id=f"{page.name}: {piece[:60]}")
    for file in sorted((ROOT / "compose").glob("*.yaml")):
        for name, service in yaml.safe_load(file.read_text()).get("services", {}).items():
            command = service.get("command", "")
            text = command if isinstance(command, str) else " ".join(command)
            words = text.rpartition("gridscore ")[2]
            if words.startswith(("source ", "sink ")):
                yield pytest.param(f"gridscore {words}", True, id=f"{file.name}: {name}")


@pytest.fixture(scope="module")
def parse():
    """Parses a command line as `gridscore` does, and does nothing; gives what is wrong with it."""
    taken = []

    def take(*_, **given):
        taken.append(given)

    def inert(command):
        command.callback = take
        for each in command.params:
            if "--log-format" in each.opts:
                each.callback = None  # it would take the notes of all later tests
        for each in getattr(command, "commands", {}).values():
            inert(each)

    command = typer.main.get_command(_commands())
    inert(command)

    def go(line):
        taken.clear()
        line = line.replace("; ", " ; ").replace("\\|", "|")
        words = list(itertools.takewhile(lambda word: word not in ENDS, shlex.split(line)))
        try:
            kinds = PLUGS[words[1]].KINDS if words[1] in PLUGS else ()
            if len(words) > 2 and words[2] in getattr(kinds, "available", ()):
                app = typer.Typer()
                app.command()(command_of(kinds[words[2]].settings_class(), take, help_text=""))
                typer.main.get_command(app).main(words[3:], standalone_mode=False)
            else:
                command.main(words[1:], standalone_mode=False)
        except Exception as error:  # noqa: BLE001 -- typer's, or one of ours
            return str(error)
        return "" if taken or "--help" in words else "it does nothing"

    return go


@pytest.mark.parametrize(("line", "is_whole"), list(lines()))
def test_gridscore_takes_the_command(line, is_whole, parse):
    wrong = parse(line)
    assert not wrong or (not is_whole and re.search("Missing|requires an argument|must be given", wrong)), wrong


def advised():
    """The commands in the texts of the package, such as those that an error says to run; what is filled in is 1."""
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            values = [getattr(part, "value", None) if isinstance(part, ast.Constant) else "1" for part in parts]
            if all(isinstance(value, str) for value in values) and isinstance(node, ast.JoinedStr | ast.Constant):
                yield from re.findall(r"`(gridscore [a-z][^`…\[|]*)`", "".join(values))


@pytest.mark.parametrize("line", sorted({line for line in advised() if "KIND" not in line}))
def test_gridscore_takes_what_its_own_texts_advise(line, parse):
    wrong = parse(line.replace("--version N", "--version 1"))
    assert not wrong or re.search("Missing|requires an argument|must be given", wrong), wrong


def test_the_pages_show_every_kind_of_source_and_sink():
    shown = {tuple(param.values[0].split()[1:3]) for param in lines()}
    kinds = {(side, kind) for side, registry in PLUGS.items() for kind in registry.KINDS.available}
    assert kinds <= shown, kinds - shown


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "json"], ids=str)
def test_json_is_json(block):
    for text in block.text.strip().split("\n{"):
        json.loads("{" * (text[0] != "{") + text.replace(", …", ""))


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "yaml" and not each.mark], ids=str)
def test_a_piece_of_a_job_file_is_one(block):
    given = set(re.findall(r"^\w+(?=:)", block.text, re.MULTILINE))
    if given & {"schema", "job"}:
        given |= {"schema", "lookups", "features"}
    if "classes" in given:
        given |= {"labels"}  # those of a classifier have other settings
    missing = [part for part in re.split(r"^(?=\w)", JOB, flags=re.MULTILINE) if part.partition(":")[0] not in given]
    parse_job("".join(missing) + block.text, str(block))
