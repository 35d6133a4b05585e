import pytest

from synthgen.core.errors import RequestError
from synthgen.core.plan import ShardPlan


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "shard", "batch"), [(1, 4, 4), (10, 8, 4), (64, 16, 8), (65, 16, 2)])
def test_workers_cover_every_index_exactly_once(n, shard, batch, workers):
    plan = ShardPlan(n, shard, batch)
    seen = [
        index
        for worker in range(workers)
        for number in plan.shards_of(worker, workers)
        for index in plan.rows(number)
    ]
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(("n", "shard", "batch"), [(1, 4, 4), (10, 8, 4), (65, 16, 2)])
def test_batches_are_full_aligned_and_cover_their_shard(n, shard, batch):
    plan = ShardPlan(n, shard, batch)
    for number in range(plan.num_shards):
        batches = list(plan.batches(number))
        assert all(len(b) == batch and b.start % batch == 0 for b in batches)
        covered = [index for b in batches for index in b]
        assert set(plan.rows(number)) <= set(covered)
        assert len(covered) - len(plan.rows(number)) < batch


def test_an_index_keeps_its_batch_when_the_plan_grows():
    small, large = ShardPlan(10, 8, 4), ShardPlan(1000, 8, 4)
    assert list(small.batches(1)) == list(large.batches(1))[: len(list(small.batches(1)))]
    assert all(small.shard_of(i) == large.shard_of(i) for i in range(10))


def test_shard_of_inverts_rows():
    plan = ShardPlan(37, 8, 4)
    assert all(i in plan.rows(plan.shard_of(i)) for i in range(37))


@pytest.mark.parametrize("arguments", [(0, 8, 4), (8, 0, 4), (8, 8, 0), (8, 6, 4)])
def test_unusable_sizes_are_refused(arguments):
    with pytest.raises(RequestError, match="batch_size"):
        ShardPlan(*arguments)


def test_foreign_worker_and_index_are_refused():
    plan = ShardPlan(10, 8, 4)
    with pytest.raises(RequestError, match=r"0 \.\. 2, got 3"):
        plan.shards_of(3, 3)
    with pytest.raises(RequestError, match="got 10"):
        plan.shard_of(10)
