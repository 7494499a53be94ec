"""Queues in the hot loop: linked lists of slots, the heap of finish steps, pending events, winner trees."""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_state import (
    G_LEAVES,
    G_PENDING,
    G_PRIORITIES,
    G_SERIAL,
    LEVELS,
    LOADED,
    R_HEAP,
    R_RUN_HEAD,
    R_RUN_TAIL,
    R_RUNNING,
    R_WAIT_HEAD,
    R_WAITING,
    S_FLAG,
    S_NEXT,
    S_PREV,
    S_PRIO,
)  # fmt: skip

SLOT_BITS = 24
SLOT_MASK = (1 << SLOT_BITS) - 1


@jit
def tree_update(tree: Any, key: Any, leaves: int, leaf: int) -> None:
    """Restore the winner tree after ``key[leaf]`` changed: the root ``tree[1]`` holds the index of the least key."""
    node = (leaves + leaf) >> 1
    while node >= 1:
        a, b = tree[2 * node], tree[2 * node + 1]
        tree[node] = a if key[a] <= key[b] else b
        node >>= 1


@jit
def set_event(state: Any, replica: int, time: int) -> None:
    state.event_key[replica] = time
    tree_update(state.event_tree, state.event_key, state.run[G_LEAVES], replica)


@jit
def heap_push(heap: Any, size: int, value: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent] <= value:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = value


@jit
def heap_fix(heap: Any, size: int, at: int, value: int) -> None:
    """Put ``value`` at ``at`` in a heap of ``size`` and sift it to its place."""
    i = at
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[i] = heap[child]
        i = child
    while i > 0 and heap[(i - 1) >> 1] > value:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = value


@jit
def finish_pop(heap: Any, row: Any) -> None:
    row[R_HEAP] -= 1
    if row[R_HEAP] > 0:
        heap_fix(heap, row[R_HEAP], 0, heap[row[R_HEAP]])


@seldom
def finish_remove(heap: Any, row: Any, slot: int) -> None:
    """Take one slot out of the finish heap wherever it is (preemption: rare)."""
    for i in range(row[R_HEAP]):
        if heap[i] & SLOT_MASK == slot:
            row[R_HEAP] -= 1
            if i < row[R_HEAP]:
                heap_fix(heap, row[R_HEAP], i, heap[row[R_HEAP]])
            return


@jit
def run_append(slots: Any, row: Any, slot: int) -> None:
    tail = row[R_RUN_TAIL]
    slots[slot, S_PREV] = tail
    slots[slot, S_NEXT] = -1
    if tail >= 0:
        slots[tail, S_NEXT] = slot
    else:
        row[R_RUN_HEAD] = slot
    row[R_RUN_TAIL] = slot
    row[R_RUNNING] += 1


@jit
def run_remove(slots: Any, row: Any, slot: int) -> None:
    before, after = slots[slot, S_PREV], slots[slot, S_NEXT]
    if before >= 0:
        slots[before, S_NEXT] = after
    else:
        row[R_RUN_HEAD] = after
    if after >= 0:
        slots[after, S_PREV] = before
    else:
        row[R_RUN_TAIL] = before
    row[R_RUNNING] -= 1


@seldom
def refresh_head(state: Any, row: Any, replica: int) -> None:
    """The head of the waiting queue is the head of the first queue that has one."""
    for level in range(LEVELS):
        if state.waiting[replica, level, 0] >= 0:
            row[R_WAIT_HEAD] = state.waiting[replica, level, 0]
            return
    row[R_WAIT_HEAD] = -1


@jit
def level_of(s: Any) -> int:
    """Requests whose blocks are loaded go first: behind one that waits for blocks they would hold on to theirs."""
    return 0 if s[S_FLAG] == LOADED else s[S_PRIO] + 1


@jit
def wait_push(state: Any, row: Any, replica: int, slot: int, front: bool) -> None:
    queue = state.waiting[replica, level_of(state.slots[slot])]
    row[R_WAITING] += 1
    if queue[0] < 0:
        queue[0] = slot
        queue[1] = slot
        state.slots[slot, S_NEXT] = -1
    elif front:
        state.slots[slot, S_NEXT] = queue[0]
        queue[0] = slot
    else:
        state.slots[queue[1], S_NEXT] = slot
        state.slots[slot, S_NEXT] = -1
        queue[1] = slot
    if state.run[G_PRIORITIES] > 1:
        refresh_head(state, row, replica)
    else:
        row[R_WAIT_HEAD] = queue[0]


@jit
def wait_pop(state: Any, row: Any, replica: int) -> int:
    """Take the head of the waiting queue."""
    slot = row[R_WAIT_HEAD]
    queue = state.waiting[replica, level_of(state.slots[slot])]
    queue[0] = state.slots[slot, S_NEXT]
    row[R_WAITING] -= 1
    if state.run[G_PRIORITIES] > 1:
        refresh_head(state, row, replica)
    else:
        row[R_WAIT_HEAD] = queue[0]
    return slot


@jit
def _before(a: Any, b: Any) -> bool:
    if a[0] != b[0]:
        return bool(a[0] < b[0])
    if a[1] != b[1]:
        return bool(a[1] < b[1])
    return bool(a[3] < b[3])


@seldom
def pending_push(state: Any, time: int, kind: int, subject: int) -> None:
    """Add a future event; room for it was made by the caller."""
    heap = state.pending
    i = state.run[G_PENDING]
    state.run[G_PENDING] += 1
    heap[i, 0], heap[i, 1], heap[i, 2], heap[i, 3] = time, kind, subject, state.run[G_SERIAL]
    state.run[G_SERIAL] += 1
    while i > 0 and _before(heap[i], heap[(i - 1) >> 1]):
        parent = (i - 1) >> 1
        for c in range(4):
            heap[i, c], heap[parent, c] = heap[parent, c], heap[i, c]
        i = parent


@seldom
def pending_pop(state: Any, at: int) -> None:
    """Drop one pending event, the earliest with ``at`` 0."""
    heap = state.pending
    state.run[G_PENDING] -= 1
    size = state.run[G_PENDING]
    for c in range(4):
        heap[at, c] = heap[size, c]
    i = at
    while i > 0 and i < size and _before(heap[i], heap[(i - 1) >> 1]):
        parent = (i - 1) >> 1
        for c in range(4):
            heap[i, c], heap[parent, c] = heap[parent, c], heap[i, c]
        i = parent
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and _before(heap[child + 1], heap[child]):
            child += 1
        if not _before(heap[child], heap[i]):
            return
        for c in range(4):
            heap[i, c], heap[child, c] = heap[child, c], heap[i, c]
        i = child
