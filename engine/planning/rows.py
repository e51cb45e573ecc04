"""Rows of several requests: a plan places a row by its first request, and the others behind it."""

from collections.abc import Sequence

import numpy as np

from engine.planning.groups import Forest
from engine.planning.prefix_tree import Ints, renumber
from engine.request import Request


def row_starts(row_sizes: Sequence[int] | None, num_requests: int) -> Ints:
    """Where each row's requests begin; without sizes each request is a row of its own."""
    if row_sizes is None:
        return np.arange(num_requests)
    sizes = np.array(row_sizes, dtype=np.int64)
    assert sizes.sum() == num_requests, (sizes.sum(), num_requests)
    assert (sizes > 0).all(), "a row has at least one request"
    return np.cumsum(sizes) - sizes


def spread(forest: Forest, requests: Sequence[Request], starts: Ints) -> Forest:
    """The forest over all requests, out of the arranged one over the first request of each row.

    A request with the prompt of its row's first ends at the same node; another prompt is a root of its own, behind
    that node. Ids stay in the order in which nodes are needed: a row's requests run one after the other.
    """
    if len(starts) == len(requests):
        return forest
    row_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(requests))))
    first: list[int] = starts[row_of].tolist()
    apart = [not _same_prompt(requests[r], requests[lead]) for r, lead in enumerate(first)]
    own = np.flatnonzero(apart)
    row_node = forest.node_of[row_of]
    place = np.empty_like(row_node)
    place[np.argsort(row_node, kind="stable")] = np.arange(len(requests))
    num_nodes = len(forest.parent)
    behind = np.concatenate([np.arange(num_nodes), row_node[own]])
    ids = np.lexsort((np.concatenate([np.full(num_nodes, -1), place[own]]), behind))
    new_id = renumber(ids)
    node_of = row_node.copy()
    node_of[own] = num_nodes + np.arange(len(own))
    lengths = np.array([len(requests[r].prompt_token_ids) for r in own.tolist()], dtype=np.int64)
    return Forest(
        parent=new_id[np.append(forest.parent, np.full(len(own), -1))[ids]],
        start=np.append(forest.start, np.zeros_like(lengths))[ids],
        end=np.append(forest.end, lengths)[ids],
        node_of=new_id[node_of],
        row_node=new_id[row_node],
    )


def _same_prompt(request: Request, first: Request) -> bool:
    assert request.adapter == first.adapter, (request.request_id, request.adapter, first.adapter)
    return request is first or np.array_equal(request.prompt_token_ids, first.prompt_token_ids)
