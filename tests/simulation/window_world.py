"""A world whose events are of cards that pay again and again, and whose scores depend on what came before."""

import json
import math
import warnings
from collections import Counter, defaultdict

import xgboost as xgb
from world import BOOSTER, World, _data, _text

from gridscore.features import EventDecoder, FeaturePlan
from gridscore.features.window_kernel import loaded
from gridscore.features.window_parts import Parts
from gridscore.features.windows import Windows
from gridscore.job import parse_job
from gridscore.operations.window_state import state_of
from gridscore.scoring import window_states

JOB = """\
job: sim
events: events.sim
event_key: card
order_by: time
lateness: 10s
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
features:
  amount: amount + sum(amount, card, "1h")
  log_amount: seconds_since_last(card)
model: {name: sim, alias: champion}
results: results.sim
"""
MORE = JOB.replace('"1h")', '"1h") + 0 * count(card, "2h")')
"""With one window feature more, and the same scores."""
PARTITIONS = 4
BAD = 666_666.0
CARDS = [f"card{number}" for number in range(12)]


class WindowWorld(World):
    """A world whose events are of cards, which come again and again."""

    def __init__(self, ring=4_096, partitions=PARTITIONS, seed=0, job=JOB):
        super().__init__(partitions, ring=ring, job=job, seed=seed)
        self.spec = parse_job(job, "simulation")
        self.scores = defaultdict(set)
        self.changes = defaultdict(int)  # of maps
        self.history, self.until = [], -math.inf
        self.clock = 1_700_000_000.0
        self.paid, self.counts = Counter(), Counter()
        watch = self.ledger.changed

        def changed(name, partition, change):
            watch(name, partition, change)
            self.changes[name] += 1
            if name == "results.sim" and change.value is not None:
                result = json.loads(_text(change.value))
                self.scores[partition, result["sequence"]].add(result["score"])
            if name == "windows.sim" and change.value is not None:
                self._check_state(partition, window_states._decode(_text(change.value).encode()).epoch)

        self.cluster.on_change = changed

    def _check_state(self, partition, epoch):
        lease = self.ledger.leases.get(partition)
        if not epoch and (lease is None or not lease["owner"]):
            return  # it was loaded
        if lease is None or epoch != lease["epoch"] or not lease["owner"]:
            self.ledger.broken.append(f"{partition}: a state of epoch {epoch} while the lease is {lease}")

    def payment(self):
        """One of the cards and its next payment."""
        self.clock += 7.0
        return self.payment_of(CARDS[self.random.randrange(len(CARDS))])

    def payment_of(self, card):
        """A card and its next payment."""
        amount = float(self.random.randint(1, 900))
        self.paid[card] += amount
        self.counts[card] += 1
        return card, {"card": card, "amount": amount, "time": self.clock}

    def pay(self, count):
        """So many payments, one after the other."""
        for _ in range(count):
            self.ask(self.client.put_events("events.sim", dict([self.payment()])))

    def pay_at_once(self, count):
        """So many payments that nobody waits for: many are scored in one batch."""
        events = [self.payment() for _ in range(count)]

        async def put():
            for event in events:
                await self.client.put_events("events.sim", dict([event]))

        return self.user.create_task(put())

    def loaded(self):
        """The states of a history that was loaded, by card."""
        if not self.history:
            return {}
        windows = Windows(self.spec)
        events = EventDecoder(self.spec).decode_all([json.dumps(each).encode() for each in self.history])
        _, (after,) = windows.apply(events, windows.inputs(events), [{}])
        return {card: loaded(state, self.until) for card, state in after.items()}

    def expected(self):
        """Score of each event by partition and sequence, and the state of each card: of a history in journal order."""
        windows, decoder, plan = Windows(self.spec), EventDecoder(self.spec), FeaturePlan(self.spec, {}, {})
        scores, states = {}, {_data(card): state for card, state in self.loaded().items()}
        for partition in range(self.partitions):
            ring = self.cluster.partition("events.sim", partition).ring
            texts = [_text(change.value).encode() for change in ring.read(ring.oldest, ring.capacity)]
            numbered = [(s, text) for s, text in enumerate(texts, ring.oldest) if json.loads(text)["amount"] != BAD]
            if not numbered:
                continue
            sequences, texts = map(list, zip(*numbered, strict=True))
            events = decoder.decode_all(texts)
            events, (after,) = windows.apply(events, windows.inputs(events), [self.loaded()], sequences)
            matrix = xgb.DMatrix(plan.matrix(events), feature_names=["amount", "log_amount"])
            scores |= {
                (partition, s): float(score) for s, score in zip(sequences, BOOSTER.predict(matrix), strict=True)
            }
            states |= {_data(card): state for card, state in after.items()}
        return scores, states

    def wrong(self):
        scores, _ = self.expected()
        return [where for where in scores if where not in self.scores]

    def sums(self):
        """What the window of each card holds."""
        return self.seen_by("sum(amount, card, '1h')")

    def states(self):
        """The states, of any revision of the job: what they have of the parts that the first one had."""
        found, parts = {}, Parts(self.spec, Windows(self.spec).layouts, 0)
        for partition in range(self.partitions):
            for key, value in self.cluster.partition("windows.sim", partition):
                entry = window_states._decode(_text(value).encode())
                is_fit = entry.parts in (b"", *parts.series)
                found[key] = entry.state if is_fit else parts.fitted(0, entry.state, entry.parts)
        return found

    def update(self, job, **options):
        """Submit another revision; returns what is said of it."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            self.ask(self.client.submit(parse_job(job, "simulation"), update=True, **options))
        return [str(each.message) for each in told]

    def seen_by(self, call):
        """What a call says of each card that has paid."""
        record = self.ask(self.client.jobs.get("sim"))
        return {card: self.ask(state_of(self.grid, record, card)).values.get(call) for card in CARDS if self.paid[card]}

    def settled(self):
        """Let time pass until all is scored; then scores and states are those of a history."""
        self.settle()
        self.advance(3.0)
        self.check()
        self.check_unhandled()
        self.check_windows()

    def check_windows(self):
        scores, states = self.expected()
        assert {where: self.scores[where] for where in scores} == {where: {score} for where, score in scores.items()}
        assert self.states() == states

    def after_the_next(self, name, count=1):
        """Return when a map has changed so many times more."""
        wanted = self.changes[name] + count
        assert self.time.run_until(lambda: self.changes[name] >= wanted, seconds=30.0)

    def take_over_after(self, name, count, worker):
        """Kill a worker amid payments, when a map has changed so many times more, and start another; all is settled."""
        put = self.pay_at_once(40)
        self.after_the_next(name, count)
        self.kill(worker)
        self.start()
        self.settled()
        assert put.done()
