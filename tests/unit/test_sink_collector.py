"""What is delivered in smaller parts: every result once, in order, with offsets that cover no more than it has."""

import pytest

from gridscore.dead_letters.letters import Rejected
from gridscore.sinks.base import Delivered
from gridscore.sinks.collector import Part, cut


def part(partition, sequences, **more):
    results = [Delivered(f"p{partition}s{s}", b"{}", {}, partition, s, 1) for s in sequences]
    keys = [each.key.encode() for each in results]
    return Part(object(), 0.0, next=max(sequences, default=0) + 5, results=results, keys=keys, **more)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_each_result_is_in_one_part_and_offsets_grow(most):
    rejected = [Rejected(0, sequence, b"k", b"x", "decode", "bad") for sequence in (2, 7, 9)]
    rest = {
        0: part(0, [3, 4, 8], lost=2, rejected=rejected, filtered=4),
        1: part(1, []),
        2: part(2, range(10)),
    }
    whole, seen, offsets, lost, dead, filtered = rest, [], {}, 0, [], 0
    while rest:
        first, rest = cut(rest, most)
        assert first
        assert sum(len(each.results) for each in first.values()) <= most
        for partition, each in first.items():
            assert [result.key.encode() for result in each.results] == each.keys
            assert all(result.sequence < each.next for result in each.results)
            assert each.next >= offsets.get(partition, 0)
            offsets[partition] = each.next
            seen += each.results
            lost += each.lost
            dead += each.rejected
            filtered += each.filtered
        for partition, each in rest.items():
            # What is committed does not cover what has not been delivered.
            assert all(result.sequence >= offsets.get(partition, 0) for result in [*each.results, *each.rejected])
    assert seen == [result for each in whole.values() for result in each.results]
    assert offsets == {partition: each.next for partition, each in whole.items()}
    assert (lost, dead, filtered) == (2, rejected, 4)


def test_what_a_rescan_put_in_stays_whole():
    parts = {0: part(0, [9] * 50, rescued=1), 1: part(1, [1])}
    first, rest = cut(parts, 10)
    assert first == {0: parts[0]}
    assert rest == {1: parts[1]}
