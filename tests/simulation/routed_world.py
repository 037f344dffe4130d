"""A world whose events have keys of their own, and windows of the card that they name: two stages, both watched."""

import base64
import json

import numpy as np
import xgboost as xgb
from window_world import BAD, JOB, WindowWorld
from world import BOOSTER, _text

from gridscore.features import EventDecoder, FeaturePlan
from gridscore.features.windows import Windows
from gridscore.scoring.window_messages import entity_key

ROUTED = JOB.replace("event_key: card\n", "").replace("lateness: 10s", "lateness: 1h")
REQUESTS, ANSWERS = "window-requests.sim", "window-answers.sim"


class RoutedWorld(WindowWorld):
    """A world whose events are payments, each with a key of its own."""

    def __init__(self, ring=4_096, job=ROUTED, **options):
        self.stage_leases = {}
        self.payments = 0
        super().__init__(ring=ring, job=job, **options)
        watch = self.cluster.on_change

        def changed(name, partition, change):
            if name == "gridscore.leases" and _text(change.key).startswith("windows:sim/") and change.value is not None:
                self.stage_leases[partition] = json.loads(_text(change.value))
            watch(name, partition, change)

        self.cluster.on_change = changed

    def payment_of(self, card):
        _, event = super().payment_of(card)
        self.payments += 1
        return f"p{self.payments}", event

    def _check_state(self, partition, epoch):
        lease = self.stage_leases.get(partition)
        if not epoch and (lease is None or not lease["owner"]):
            return  # it was loaded
        if lease is None or epoch != lease["epoch"] or not lease["owner"]:
            self.ledger.broken.append(f"{partition}: a state of epoch {epoch} while the lease is {lease}")

    def events(self):
        """Texts of the events that count, by partition and sequence."""
        found = {}
        for partition in range(self.partitions):
            ring = self.cluster.partition("events.sim", partition).ring
            for sequence, change in enumerate(ring.read(ring.oldest, ring.capacity), ring.oldest):
                if change.value is not None and json.loads(_text(change.value))["amount"] != BAD:
                    found[partition, sequence] = _text(change.value).encode()
        return found

    def asked(self, window=0):
        """Partition and sequence of each event in the order in which its entity's partition had it first."""
        found = {}
        name = Windows(self.spec).layouts[window].name.encode() + b":"
        for partition in range(self.partitions):
            ring = self.cluster.partition(REQUESTS, partition).ring
            for change in ring.read(ring.oldest, ring.capacity):
                request = json.loads(_text(change.value))
                if base64.b64decode(request[-1])[12:].startswith(name):
                    for place in zip(_ints(request[3], np.int32), _ints(request[5], np.int64), strict=True):
                        found.setdefault(place)
        return list(found)

    def expected(self):
        texts = self.events()
        columns, states = {}, {entity_key("card", card): state for card, state in self.loaded().items()}
        for window, layout in enumerate(Windows(self.spec).layouts):
            order = [place for place in self.asked(window) if place in texts]
            if not order:
                continue
            windows, decoder = Windows(self.spec), EventDecoder(self.spec)
            events = decoder.decode_all([texts[place] for place in order])
            inputs = windows.inputs(events)
            before = [self.loaded() if each.name == "card" else {} for each in windows.layouts]
            seen, after = windows.apply(events, inputs, before)
            states |= {entity_key(layout.name, entity): state for entity, state in after[window].items()}
            for output in layout.outputs:
                values = seen.window(output).tolist()
                for place, value in zip(order, values, strict=True):
                    columns.setdefault(place, {})[output] = value
        places = [place for place in texts if len(columns.get(place, ())) == Windows(self.spec).calls]
        if not places:
            return {}, states
        events = EventDecoder(self.spec).decode_all([texts[place] for place in places])
        count = Windows(self.spec).calls
        events = events.with_windows([np.array([columns[p][output] for p in places]) for output in range(count)])
        matrix = xgb.DMatrix(FeaturePlan(self.spec, {}, {}).matrix(events), feature_names=["amount", "log_amount"])
        return dict(zip(places, map(float, BOOSTER.predict(matrix)), strict=True)), states

    def wrong(self):
        return [place for place in self.events() if place not in self.scores]

    def entries(self, name):
        return {entry for partition in range(self.partitions) for entry in self.cluster.partition(name, partition)}

    def states(self):
        names = tuple(f"{layout.name}:" for layout in Windows(self.spec).layouts)
        return {key: state for key, state in super().states().items() if _text(key).startswith(names)}


def _ints(text, kind):
    return np.frombuffer(base64.b64decode(text), kind).tolist()
