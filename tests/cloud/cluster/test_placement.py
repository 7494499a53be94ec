"""Placement: the compiled loop against its plain reference, the published comparison, and what must hold of any run."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.cluster.lists import drawn_list
from trivet.cloud.cluster.nodes import Node
from trivet.cloud.cluster.placement import Placement, schedule
from trivet.cloud.cluster.policies import POLICIES, Context, NodeView, fgd, fragmentation
from trivet.cloud.cluster.tasks import Task, TypicalTask, typical_tasks
from trivet.errors import TrivetError, UnknownName
from trivet.interop.openb import read_nodes, read_tasks

PUBLISHED = {  # mean at 130%, its standard deviation over seeds 42-51, mean at 100%: the paper's repository
    "fgd": (95.39, 0.08, 95.23), "bestfit": (93.08, 0.13, 92.86), "gpupacking": (92.00, 0.54, 91.78),
    "gpuclustering": (91.88, 0.62, 91.65), "dotprod": (90.85, 0.20, 90.62), "random": (87.47, 0.32, 86.30),
}  # fmt: skip


@pytest.fixture(scope="module")
def openb(shared_data: Path) -> tuple[list[Node], list[Task]]:
    folder = shared_data / "cluster"
    return read_nodes(folder / "openb_node_list_gpu_node.csv"), read_tasks(folder / "openb_pod_list_default.csv.gz")


def integrity(run: Placement) -> None:
    """No node gives more than it has, no device more than 1000, devices match what was asked."""
    exp = run.experiment
    for i, node in enumerate(exp.nodes):
        mine = [k for k in range(len(exp.tasks)) if run.node[k] == i]
        assert sum(exp.tasks[k].cpu_milli for k in mine) <= node.cpu_milli
        assert sum(exp.tasks[k].memory_mib for k in mine) <= node.memory_mib
        used = [0] * node.chips
        for k in mine:
            task, mask = exp.tasks[k], int(run.devices[k])
            devices = [d for d in range(node.chips) if mask >> d & 1]
            assert len(devices) == task.num_chips == mask.bit_count()
            assert not task.chip_types or not task.num_chips or node.model in task.chip_types
            for d in devices:
                used[d] += task.chip_milli
        assert max(used, default=0) <= 1000


@pytest.mark.parametrize("policy", list(PUBLISHED))
def test_the_published_means_are_reproduced(openb: tuple[list[Node], list[Task]], policy: str) -> None:
    runs = [schedule(*openb, policy, seed=seed, tune=1.3) for seed in range(42, 52)]
    end, deviation, at_100 = PUBLISHED[policy]
    assert abs(statistics.fmean(r.allocation_percent() for r in runs) - end) <= deviation
    assert abs(statistics.fmean(r.allocation_percent_at()[100] for r in runs) - at_100) <= deviation


def test_seed_42_ends_where_the_authors_log_ends(openb: tuple[list[Node], list[Task]]) -> None:
    run = schedule(*openb, "fgd", seed=42, tune=1.3)
    placed = [t for t, i in zip(run.experiment.tasks, run.node, strict=True) if i >= 0]
    assert len(run.experiment.tasks) == 10_866
    assert sum(t.total_milli for t in placed) == 5_919_410
    assert sum(t.cpu_milli for t in placed) == 89_928_302
    integrity(run)


def test_fast_and_plain_place_openb_alike(openb: tuple[list[Node], list[Task]]) -> None:
    nodes, tasks = openb
    few_nodes, few_tasks = nodes[::40], tasks[::25]
    for policy in POLICIES:
        fast = schedule(few_nodes, few_tasks, policy, seed=7, tune=1.5)
        plain = schedule(few_nodes, few_tasks, policy, seed=7, tune=1.5, plain=True)
        assert fast.node.tolist() == plain.node.tolist(), policy
        assert fast.devices.tolist() == plain.devices.tolist(), policy
        assert (fast.node < 0).any(), "the load must reach the point where tasks are dropped"


NODES = st.lists(
    st.tuples(st.sampled_from([8000, 32000, 96000, 128000]), st.sampled_from([16384, 262144]), st.integers(0, 8),
              st.sampled_from(["A", "B", "C"])),
    min_size=1, max_size=9,
)  # fmt: skip
TASKS = st.lists(
    st.tuples(st.sampled_from([0, 1000, 4000, 7000, 24000]), st.sampled_from([0, 1024, 16384]),
              st.sampled_from([(0, 0), (1, 1000), (1, 470), (1, 500), (1, 30), (2, 1000), (4, 1000), (8, 1000)]),
              st.sampled_from([(), (), ("A",), ("B", "C")])),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(NODES, TASKS, st.sampled_from(list(POLICIES)), st.integers(0, 2**31), st.sampled_from([0.0, 0.7, 1.3]))
def test_fast_and_plain_agree_on_any_cluster(nodes, tasks, policy, seed, tune) -> None:  # type: ignore[no-untyped-def]
    node_list = [Node(f"n{i}", c, m, g, model) for i, (c, m, g, model) in enumerate(nodes)]
    task_list = [Task(f"t{i}", c, m, n, g, types if n else ()) for i, (c, m, (n, g), types) in enumerate(tasks)]
    fast = schedule(node_list, task_list, policy, seed=seed, tune=tune)
    plain = schedule(node_list, task_list, policy, seed=seed, tune=tune, plain=True)
    assert fast.node.tolist() == plain.node.tolist()
    assert fast.devices.tolist() == plain.devices.tolist()
    integrity(fast)


def test_a_full_state_store_changes_nothing(openb: tuple[list[Node], list[Task]], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, tasks = openb
    expected = schedule(nodes[::30], tasks[::20], "fgd", seed=3, tune=1.2)
    monkeypatch.setattr("trivet.cloud.cluster.placement.STATES", 1)
    assert schedule(nodes[::30], tasks[::20], "fgd", seed=3, tune=1.2).node.tolist() == expected.node.tolist()


def test_fragmentation_by_hand() -> None:
    # Half the demand wants 600 thousandths and 4 CPUs, half two whole chips; devices have 700 and 500 left.
    demand = (TypicalTask(4000, 600, 1, (), 0.5), TypicalTask(8000, 1000, 2, (), 0.5))
    assert fragmentation("A", 8000, [700, 500], demand) == pytest.approx(0.5 * 500 + 0.5 * 1200)
    assert fragmentation("A", 3000, [700, 500], demand) == pytest.approx(1200)
    assert fragmentation("A", 8000, [1000, 1000], demand) == 0.0


def test_fgd_prefers_the_device_that_leaves_no_stub() -> None:
    demand = (TypicalTask(1000, 500, 1, (), 1.0),)
    tight = NodeView(0, "A", 8000, 0, [500, 1000])
    roomy = NodeView(1, "A", 8000, 0, [700, 1000])
    task = Task("t", 1000, 0, 1, 500)
    context = Context(demand, None)  # type: ignore[arg-type]
    assert fgd(tight, task, context) >= 50
    assert fgd(tight, Task("u", 1000, 0, 1, 300), context) <= fgd(roomy, Task("u", 1000, 0, 1, 300), context)


def test_typical_tasks_cover_the_popularity_and_sum_to_one() -> None:
    tasks = [Task(f"a{i}", 1000, 0, 1, 1000) for i in range(90)] + [Task(f"b{i}", i, 0, 0, 0) for i in range(10)]
    typical = typical_tasks(tasks)
    assert sum(t.share for t in typical) == pytest.approx(1.0)
    assert typical[0].share == pytest.approx(90 / 95)
    assert len(typical) == 6  # 90 of one shape and five of the rest make 95%


def test_tune_reaches_its_load_and_keeps_the_originals_first(openb: tuple[list[Node], list[Task]]) -> None:
    run = schedule(*openb, "firstfit", seed=42, tune=1.3)
    assert run.arrived_milli[-1] / run.total_milli == pytest.approx(1.3, abs=2e-3)
    assert set(run.experiment.names[:8152]) == {t.name for t in openb[1]}
    down = schedule(*openb, "firstfit", seed=42, tune=0.5)
    assert down.arrived_milli[-1] / down.total_milli == pytest.approx(0.5, abs=2e-3)


def test_allocation_at_is_monotone_and_ends_at_the_end(openb: tuple[list[Node], list[Task]]) -> None:
    run = schedule(*openb, "bestfit", seed=42, tune=1.3)
    at = run.allocation_percent_at()
    values = [at[p] for p in sorted(at)]
    assert np.all(np.diff(values) > -1e-9)
    assert at[130] == pytest.approx(run.allocation_percent(), abs=0.05)
    assert np.all(np.diff(run.allocated_milli) >= 0)


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="bestfit"):
        schedule([Node("n", 1, 1, 1)], [Task("t", 1, 1, 0, 0)], "best")


def test_a_plug_in_policy_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "emptiest"

        @staticmethod
        def load():  # type: ignore[no-untyped-def]
            return lambda node, task, context: node.total_left

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry] if group == "trivet.placement" else [])
    nodes = [Node(f"n{i}", 64000, 64000, 2) for i in range(4)]
    run = schedule(nodes, [Task(f"t{i}", 1000, 0, 1, 1000) for i in range(4)], "emptiest")
    assert sorted(run.node.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "field"),
    [({"chip_milli": 0}, "gpu_milli"), ({"num_chips": 2, "chip_milli": 500}, "gpu_milli"), ({"cpu_milli": -1}, "cpu_milli")],
)
def test_impossible_tasks_are_refused(change: dict[str, int], field: str) -> None:
    whole = {"name": "t", "cpu_milli": 1, "memory_mib": 1, "num_chips": 1, "chip_milli": 1000}
    with pytest.raises(TrivetError) as caught:
        Task(**{**whole, **change})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_lists_drawn_from_a_list_fill_the_cluster_and_follow_their_seed() -> None:
    """What ``docs/scheduling.md`` judges ``fgdcpu`` on."""
    nodes = [Node(f"n{i}", 64_000, 262_144, 8, "A" if i % 2 else "B") for i in range(20)]
    asked = [(1, 500), (1, 1000), (4, 1000), (0, 0)]
    tasks = [Task(f"t{i}", 2000 + 500 * (i % 7), 4096, *asked[i % 4]) for i in range(200)]
    lists = [drawn_list(tasks, nodes, seed) for seed in range(6)]
    assert lists[0] == drawn_list(tasks, nodes, 0)
    assert len({len(found) for found in lists}) > 1
    for found in lists:
        milli = sum(t.total_milli for t in found)
        assert 0.98 * 160_000 <= milli < 0.98 * 160_000 + 3 * 4000, "each of three pools ends with the task that fills it"
        assert len({t.name for t in found}) == len(found)
        assert all(set(t.chip_types) <= {"A", "B"} for t in found)
        assert schedule(nodes, found, "bestfit", seed=1).allocation_percent() > 50
    assert any(t.chip_types for found in lists for t in found)
    with pytest.raises(TrivetError, match="no task asks for a chip"):
        drawn_list([t for t in tasks if not t.num_chips], nodes, 0)
