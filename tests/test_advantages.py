"""Credit by numbers worked by hand, and what must not change it: masks, padding, permutation, ranks."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trees import seeded
from truing.advantages import gae, group_mean, leave_one_out, moments, whiten

ALL = torch.ones(1, 3, dtype=torch.bool)


def test_gae_by_hand() -> None:
    """gamma 1, lambda 0.5, rewards 0 0 1, values 0.5 0.25 0.5: deltas -0.25 0.25 0.5, carried back by halves."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]])
    advantages, returns = gae(rewards, values, ALL, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[0.0, 0.5, 0.5]]
    assert returns.tolist() == [[0.5, 0.75, 1.0]]


def test_gae_discounts_by_hand() -> None:
    """gamma 0.5, lambda 1: returns are the discounted rewards, 1 + 2/2 + 4/4, 2 + 4/2 and 4."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[7.0, -3.0, 0.25]])
    advantages, returns = gae(rewards, values, ALL, gamma=0.5, lam=1.0)
    assert returns.tolist() == [[3.0, 4.0, 4.0]]
    assert advantages.tolist() == [[-4.0, 7.0, 3.75]]


def test_lambda_0_is_one_step_and_lambda_1_the_whole_return() -> None:
    rewards, values = torch.randn(4, 6, generator=seeded(1)), torch.randn(4, 6, generator=seeded(2))
    mask = torch.ones(4, 6, dtype=torch.bool)
    one_step, _ = gae(rewards, values, mask, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    torch.testing.assert_close(one_step, rewards + following - values)
    _, returns = gae(rewards, values, mask, lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_trap_16_an_end_is_terminal_unless_the_response_was_cut() -> None:
    rewards, values = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[0.0, 0.5]] * 2)
    advantages, _ = gae(rewards, values, torch.ones(2, 2, dtype=torch.bool), lam=0.5, after=torch.tensor([0.0, 2.0]))
    assert advantages.tolist() == [[0.75, 0.5], [1.75, 2.5]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(0, 2**20))
def test_trap_16_masked_tokens_wherever_they_stand_change_nothing(flags: list[bool], seed: int) -> None:
    mask = torch.tensor([flags])
    rewards, values = (torch.randn(1, len(flags), generator=seeded(seed + i)) for i in (0, 1))
    alone = [tensor[mask][None] for tensor in (rewards, values)]
    expected = gae(*alone, torch.ones_like(alone[0], dtype=torch.bool), gamma=0.9)
    filled = [tensor.masked_fill(~mask, float("nan")) for tensor in (rewards, values)]
    for found, whole in zip(gae(*filled, mask, gamma=0.9), expected, strict=True):
        assert torch.equal(found[mask], whole[0])
        assert not found[~mask].any()


def test_leave_one_out_by_hand() -> None:
    """4 against the mean 2 of 1 2 3; the advantages of a prompt add up to 0."""
    advantages = leave_one_out(torch.tensor([[4.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[2.0, -2.0, -2 / 3, 2 / 3], [0.0, 0.0, 0.0, 0.0]]))
    assert leave_one_out(torch.tensor([[7.0]])).tolist() == [[0.0]]


def test_group_mean_by_hand() -> None:
    """Mean 2 and deviation 1 of 1 2 3; an all-equal group and a group of one have advantage 0."""
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(group_mean(rewards), torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=2e-4, rtol=0)
    assert group_mean(rewards, scale=False).tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert group_mean(torch.tensor([[7.0]])).tolist() == [[0.0]]


def test_group_credit_ignores_the_zero_of_rewards_and_the_order_of_responses() -> None:
    rewards = torch.randn(3, 5, generator=seeded(3))
    order = torch.tensor([2, 0, 4, 1, 3])
    for credit in (leave_one_out, group_mean, lambda r: group_mean(r, scale=False)):
        torch.testing.assert_close(credit(rewards + 10), credit(rewards), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(credit(rewards[:, order]), credit(rewards)[:, order])
    torch.testing.assert_close(group_mean(3 * rewards), group_mean(rewards), atol=1e-3, rtol=1e-3)


def test_whitening_by_hand() -> None:
    """Mean 2 and variance 16 / 6 of 0 2 4 2 0 4; rewards keep their mean."""
    values = torch.tensor([0.0, 2.0, 4.0, 2.0, 0.0, 4.0])
    deviation = (16 / 6) ** 0.5
    torch.testing.assert_close(whiten(values), (values - 2) / deviation)
    torch.testing.assert_close(whiten(values, shift_mean=False), (values - 2) / deviation + 2)
    assert not whiten(torch.full((3,), 5.0)).any()


def test_trap_16_reward_whitening_does_not_shift_the_mean() -> None:
    values = torch.randn(50, generator=seeded(4)) * 3 + 7
    assert float(whiten(values, shift_mean=False).mean()) == pytest.approx(float(values.mean()), abs=1e-5)
    assert float(whiten(values).mean()) == pytest.approx(0, abs=1e-6)


def on_ranks(parts: list[Tensor]) -> list[Tensor]:
    """`whiten` on ranks that add through a barrier, as `World.sum` does."""
    barrier, given = threading.Barrier(len(parts)), [[] for _ in parts]
    found: list[Tensor] = [torch.zeros(0)] * len(parts)

    def run(rank: int) -> None:
        def total(values: list[float]) -> list[float]:
            given[rank] = values
            barrier.wait()
            added = [sum(column) for column in zip(*given, strict=True)]
            barrier.wait()
            return added

        found[rank] = whiten(parts[rank], total)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_trap_16_advantages_are_whitened_over_all_ranks_once() -> None:
    """One token on one rank and nine on the other; a rank with none takes part."""
    values = torch.randn(10, generator=seeded(5))
    for cut in (1, 0, 4):
        parts = on_ranks([values[:cut], values[cut:]])
        torch.testing.assert_close(torch.cat(parts), whiten(values))


def test_moments_stay_exact_far_from_zero() -> None:
    mean, variance, count = moments(torch.tensor([1e6, 1e6 + 1, 1e6 + 2]))
    assert (mean, count) == (1e6 + 1, 3.0)
    assert variance == pytest.approx(2 / 3, rel=1e-9)
